"""Serving throughput beside transformers and CTranslate2, and what a server costs around it.

    .venv/bin/python benchmarks/serving/run.py [--json FILE] [--rounds 3] [--presorted]

The same 64 requests go to our server over HTTP, 16 at a time, and to each peer in static batches of
16, in the same order, in alternating rounds on this machine. Our prefix cache is off there: it
would know every prompt from the round before. A peer that is missing or fails ends the run with
exit code 1. Ratios below what is owed are printed as MISSED and do not change the exit code.
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
from peers import Peer, PeerError, PeerSpec, candidates, choose, probe_requests
from random_llama import VOCAB_SIZE, ensure_model
from server import Server, ServerError
from workload import CONCURRENCY, NUM_REQUESTS, Request, make_requests

DEMO_MODEL = Path(__file__).parents[2] / "examples" / "demo-model"
MODEL_NAME = "random-125m"
# enough for 16 running requests and the prefix measurement, and small enough to leave memory alone
KV_SLOTS = 32768
OPTIONS = ("--served-model-name", MODEL_NAME, "--max-total-token-num", str(KV_SLOTS))


class Ours:
    """Our server in the place of a peer."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def run(self, requests: list[Request]) -> Round:
        return client.run_round(self.server.port, requests, MODEL_NAME)


Contestant = tuple[Ours | Peer, EngineResult]


def start_ours(
    stack: contextlib.ExitStack, model_dir: Path, threads: int, *, quantised: bool
) -> Contestant:
    """Our server on the random model, ended with `stack`."""
    options = [*OPTIONS, "--prefix-cache", "off"]
    if quantised:
        options += ["--weight-dtype", "int8"]
    server = stack.enter_context(Server(model_dir, *options, threads=threads))
    result = EngineResult(
        name="lightllm-kubernetes" + (" int8 weights" if quantised else ""),
        ours=True,
        quantised=quantised,
        command=server.command,
        version=version("lightllm-kubernetes"),
        dtype=server.dtype() + (" + int8 weights" if quantised else ""),
        threads=threads,
    )
    return Ours(server), result


def start_peer(
    stack: contextlib.ExitStack, spec: PeerSpec, threads: int, *, presorted: bool
) -> Contestant:
    """A peer at the dtype that the probe chose, ended with `stack`."""
    peer = Peer(spec, threads, presorted=presorted)
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
    return peer, result


def run_rounds(contestants: list[Contestant], requests: list[Request], num_rounds: int) -> None:
    """A warm-up each, then every engine in turn, `num_rounds` times."""
    for engine, _ in contestants:
        engine.run(probe_requests(requests))
    for number in range(1, num_rounds + 1):
        for engine, result in contestants:
            result.rounds.append(engine.run(requests))
            speed = result.speeds[-1]
            print(f"round {number}  {result.name:36} {speed:7.1f} tokens/s", flush=True)


def measure_engines(
    model_dir: Path, threads: int, num_rounds: int, num_requests: int, *, presorted: bool
) -> tuple[list[EngineResult], dict[str, Any]]:
    """All engines in alternating rounds, then what is measured on our two running servers."""
    requests = make_requests(VOCAB_SIZE, count=num_requests)
    chosen, probes = choose(candidates(model_dir), requests, threads)
    report.print_section("probe of each dtype, tokens/s (16 requests of 16 tokens)", probes)
    with contextlib.ExitStack() as stack:
        ours = [
            start_ours(stack, model_dir, threads, quantised=quantised)
            for quantised in (False, True)
        ]
        contestants = [
            *ours,
            *(start_peer(stack, spec, threads, presorted=presorted) for spec in chosen),
        ]
        run_rounds(contestants, requests, num_rounds)
        plain, int8 = (engine.server for engine, _ in ours if isinstance(engine, Ours))
        prompts = [request.prompt_ids for request in requests[: extras.LOGITS_PROMPTS]]
        sections = {
            "probes": probes,
            "memory_mb": plain.memory_mb(),
            "int8_weights_random_model": extras.compare_logits(plain, int8, prompts, MODEL_NAME),
        }
    with Server(model_dir, *OPTIONS, threads=threads) as cached:
        sections["shared_prefix"] = extras.shared_prefix(cached, MODEL_NAME, VOCAB_SIZE)
    return [result for _, result in contestants], sections


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number here too")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (default 3)")
    parser.add_argument("--requests", type=int, default=NUM_REQUESTS, help="fewer to try it out")
    parser.add_argument(
        "--presorted",
        action="store_true",
        help="the peers know all requests beforehand and batch them by prompt length",
    )
    options = parser.parse_args()
    if options.rounds < 1 or options.requests < CONCURRENCY:
        parser.error(f"--rounds must be at least 1 and --requests at least {CONCURRENCY}")
    threads = len(os.sched_getaffinity(0))
    print(f"{report.cpu_name()}, {threads} threads, {CONCURRENCY} requests at a time", flush=True)
    try:
        sections: dict[str, Any] = {
            "start_demo_model": extras.time_to_ready(DEMO_MODEL, threads),
            "null_model_requests_per_second": extras.null_model(DEMO_MODEL, threads),
            "int8_weights_demo_model": extras.demo_logits(DEMO_MODEL, threads),
        }
        results, more = measure_engines(
            ensure_model(),
            threads,
            options.rounds,
            options.requests,
            presorted=options.presorted,
        )
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
