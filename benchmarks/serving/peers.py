"""The peers as seen from the benchmark: one process each, spoken to over pipes."""

from __future__ import annotations

import json
import math
import os
import select
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measure import Round
from workload import CONCURRENCY, Request, batches

WORKER = Path(__file__).with_name("peer_worker.py")
REPLY_TIMEOUT_SECONDS = 1800.0
PROBE_OUTPUT_LEN = 16
# what rounds the weights of the linear layers to integers; all else counts as unquantised
QUANTISED_PREFIXES = ("int8", "int16")


class PeerError(RuntimeError):
    """A peer could not be loaded or stopped answering: the benchmark is void."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSpec:
    """An engine at one dtype; `model_dir` is in the format that the engine reads."""

    engine: str
    dtype: str
    model_dir: Path

    @property
    def quantised(self) -> bool:
        return self.dtype.startswith(QUANTISED_PREFIXES)

    @property
    def name(self) -> str:
        return f"{self.engine} {self.dtype}"


class Peer:
    """A running `peer_worker.py`; raises PeerError where it fails."""

    def __init__(self, spec: PeerSpec, threads: int, *, presorted: bool = False) -> None:
        self.spec = spec
        command = [sys.executable, str(WORKER), spec.engine, str(spec.model_dir), spec.dtype]
        self._process = subprocess.Popen(
            [*command, str(threads), "presorted" if presorted else "arrival"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"},
        )
        hello = self._reply()
        self.version: str = hello["version"]
        self.command: str = hello["command"]

    def run(self, requests: list[Request]) -> Round:
        """One round over `requests`."""
        assert self._process.stdin is not None
        line = json.dumps([[request.prompt_ids, request.output_len] for request in requests])
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(self._failure()) from None
        reply = self._reply()
        tokens = sum(request.output_len for request in requests)
        return Round(output_tokens=tokens, **reply)

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.communicate()

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], REPLY_TIMEOUT_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise PeerError(self._failure())
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _failure(self) -> str:
        self._process.kill()
        _, errors = self._process.communicate()
        tail = errors.decode(errors="replace").strip().splitlines()[-5:]
        return f"{self.spec.name} gave no answer:\n  " + "\n  ".join(tail)


def convert_for_ctranslate2(model_dir: Path) -> Path:
    """The same model as CTranslate2's converter writes it, made once beside `model_dir`."""
    target = model_dir.with_name(model_dir.name + "-ctranslate2")
    if (target / "model.bin").is_file():
        return target
    converter = Path(sys.executable).with_name("ct2-transformers-converter")
    command = [str(converter), "--model", str(model_dir), "--output_dir", str(target), "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{converter.name} failed:\n{done.stderr[-2000:]}")
    return target


def candidates(model_dir: Path) -> list[PeerSpec]:
    """Every engine at every dtype that this CPU supports there."""
    import ctranslate2

    converted = convert_for_ctranslate2(model_dir)
    supported = ctranslate2.get_supported_compute_types("cpu")
    # "int8" alone already takes the best float type beside it
    types = sorted(kind for kind in supported if not kind.startswith("int8_"))
    return [
        *(
            PeerSpec(engine="transformers", dtype=dtype, model_dir=model_dir)
            for dtype in ("float32", "bfloat16")
        ),
        *(PeerSpec(engine="ctranslate2", dtype=kind, model_dir=converted) for kind in types),
    ]


def probe_requests(requests: list[Request]) -> list[Request]:
    """The first batch with short outputs: the warm-up, and the probe for the best dtype."""
    return [replace(request, output_len=PROBE_OUTPUT_LEN) for request in batches(requests)[0]]


def choose(
    specs: list[PeerSpec], requests: list[Request], threads: int
) -> tuple[list[PeerSpec], dict[str, float]]:
    """The fastest dtype per engine, unquantised and quantised apart; and every probe's tokens/s."""
    probe = probe_requests(requests)
    assert len(probe) == CONCURRENCY, len(probe)
    speeds: dict[str, float] = {}
    best: dict[tuple[str, bool], PeerSpec] = {}
    for spec in specs:
        peer = Peer(spec, threads)
        try:
            # the first run pays for page faults and lazy initialisation
            peer.run(probe)
            speeds[spec.name] = peer.run(probe).tokens_per_second
        finally:
            peer.close()
        kind = (spec.engine, spec.quantised)
        fastest = speeds[best[kind].name] if kind in best else -math.inf
        if speeds[spec.name] > fastest:
            best[kind] = spec
    return list(best.values()), speeds
