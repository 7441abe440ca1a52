"""Serving throughput beside transformers and CTranslate2, and what a server costs around it.

    .venv/bin/python benchmarks/serving/run.py [--json FILE] [--rounds 3]

The same 64 requests go to our server over HTTP, 16 at a time, and to each peer in batches of 16,
in alternating rounds on this machine. A peer that is missing or fails ends the run with exit code
1. Ratios below what is owed are printed as MISSED and do not change the exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import client
import extras
import report
from measure import EngineResult, Round, ratios
from peers import Peer, PeerError, candidates, choose, probe_requests
from random_llama import VOCAB_SIZE, ensure_model
from server import Server, ServerError
from workload import CONCURRENCY, make_requests

DEMO_MODEL = Path(__file__).parents[2] / "examples" / "demo-model"
MODEL_NAME = "random-125m"
# enough for 16 running requests and the prefix measurement, and small enough to leave memory alone
KV_SLOTS = 32768
INT8 = ("--weight-dtype", "int8")


class Ours:
    """Our server in the place of a peer."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def run(self, requests: list[Any]) -> Round:
        return client.run_round(self.server.port, requests, MODEL_NAME)


def our_server(stack: contextlib.ExitStack, model_dir: Path, threads: int, *extra: str) -> Server:
    options = ("--served-model-name", MODEL_NAME, "--max-total-token-num", str(KV_SLOTS), *extra)
    return stack.enter_context(Server(model_dir, *options, threads=threads))


def our_result(server: Server, threads: int, *, quantised: bool) -> EngineResult:
    return EngineResult(
        name="lightllm-kubernetes" + (" int8 weights" if quantised else ""),
        ours=True,
        quantised=quantised,
        command=server.command,
        version=version("lightllm-kubernetes"),
        dtype="auto" + (" + int8 weights" if quantised else ""),
        threads=threads,
    )


def measure_engines(
    stack: contextlib.ExitStack, model_dir: Path, threads: int, num_rounds: int
) -> tuple[list[EngineResult], dict[str, Any]]:
    """All engines in alternating rounds, then what is measured on our two running servers."""
    requests = make_requests(VOCAB_SIZE)
    chosen, probes = choose(candidates(model_dir), requests, threads)
    report.print_section("probe of each dtype, tokens/s (16 requests of 16 tokens)", probes)

    engines: list[tuple[Ours | Peer, EngineResult]] = []
    servers = []
    for options in ((), INT8):
        server = our_server(stack, model_dir, threads, *options)
        servers.append(server)
        engines.append((Ours(server), our_result(server, threads, quantised=bool(options))))
    for spec in chosen:
        peer = Peer(spec, threads)
        stack.callback(peer.close)
        result = EngineResult(
            name=spec.name,
            ours=False,
            quantised=spec.quantised,
            command=peer.command,
            version=peer.version,
            dtype=spec.dtype,
            threads=threads,
        )
        engines.append((peer, result))

    for engine, _ in engines:
        engine.run(probe_requests(requests))
    for number in range(num_rounds):
        for engine, result in engines:
            result.rounds.append(engine.run(requests))
            print(
                f"round {number + 1}  {result.name:36} {result.speeds[-1]:7.1f} tokens/s",
                flush=True,
            )

    plain, int8 = servers
    prompts = [request.prompt_ids for request in requests[: extras.LOGITS_PROMPTS]]
    sections = {
        "probes": probes,
        "memory_mb": plain.memory_mb(),
        "shared_prefix": extras.shared_prefix(plain, MODEL_NAME, VOCAB_SIZE),
        "int8_weights_random_model": extras.compare_logits(plain, int8, prompts, MODEL_NAME),
    }
    return [result for _, result in engines], sections


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number here too")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (default 3)")
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    print(f"{report.cpu_name()}, {threads} threads, {CONCURRENCY} requests at a time", flush=True)
    try:
        sections: dict[str, Any] = {
            "start_demo_model": extras.time_to_ready(DEMO_MODEL, threads),
            "null_model_requests_per_second": extras.null_model(DEMO_MODEL, threads),
            "int8_weights_demo_model": extras.demo_logits(DEMO_MODEL, threads),
        }
        with contextlib.ExitStack() as stack:
            results, more = measure_engines(stack, ensure_model(), threads, options.rounds)
    except (PeerError, ServerError, client.ClientError, ImportError) as error:
        print(f"benchmark void: {error}", file=sys.stderr)
        return 1
    sections |= more
    report.print_engines(results)
    for title, values in sections.items():
        report.print_section(title, values)
    report.print_ratios(ratios(results))
    if options.json:
        report.write_json(options.json, results, ratios=ratios(results), **sections)
    return 0


if __name__ == "__main__":
    sys.exit(main())
