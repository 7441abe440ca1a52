"""The load through the server's own processes and HTTP, where its packages are installed."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from arrivals import Request, make_requests
from client import stream_completion
from random_llama import write_tokenizer
from server import Server, free_port

ROOT = Path(__file__).parents[2]
NEEDED = ("fastapi", "uvicorn", "zmq", "msgspec", "pydantic", "prometheus_client", "jinja2")


def missing_packages() -> list[str]:
    """The server's packages that are not here (`wheels.sh` fetches them)."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


class SourceServer(Server):
    """Started from the checkout: nothing is installed on the machine of the check."""

    def __init__(self, model_dir: Path, *options: str) -> None:
        self.port = free_port()
        arguments = ["--model-dir", str(model_dir), "--port", str(self.port), "--drain-delay", "0"]
        self.command = " ".join(["lightllm-server", *arguments, *options])
        self._log = tempfile.NamedTemporaryFile(prefix="gpu-check-", suffix=".log")  # noqa: SIM115
        self._start = time.perf_counter()
        paths = [str(ROOT / "server"), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        # the interpreter is for cases that ask for it
        environment.pop("TRITON_INTERPRET", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lightllm_server", *arguments, *options],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        self.seconds_to_ready = 0.0


def measure(
    model_dir: Path, device: torch.device, count: int, rate: float, *, tiny: bool
) -> dict[str, Any]:
    """Requests at their times, streamed."""
    write_tokenizer(model_dir)
    options = ["--device", device.type, "--load-format", "dummy", "--served-model-name", "bench"]
    # as the cases in process
    options += ["--kv-dtype", "model"]
    if tiny:
        options += ["--max-total-token-num", "1024", "--running-max-req-size", "8"]
    vocab = 100 if tiny else 32000
    requests = make_requests(count, rate=rate, vocab_size=vocab, shrink=64 if tiny else 1)
    with SourceServer(model_dir, *options) as server:
        began = time.perf_counter()
        times = asyncio.run(_open_loop(server.port, requests))
        seconds = time.perf_counter() - began
    outputs = sum(request.output_len for request in requests)
    ttft = sorted(first for first, _ in times)
    return {
        "requests_per_s": round(count / seconds, 2),
        "output_tokens_per_s": round(outputs / seconds, 1),
        "ttft_p50_s": round(ttft[len(ttft) // 2], 3),
        "seconds_to_ready": round(server.seconds_to_ready, 1),
    }


async def _open_loop(port: int, requests: list[Request]) -> list[tuple[float, float]]:
    began = time.perf_counter()

    async def one(request: Request) -> tuple[float, float]:
        await asyncio.sleep(max(0.0, request.due - (time.perf_counter() - began)))
        return await stream_completion(port, list(request.prompt_ids), request.output_len, "bench")

    return await asyncio.gather(*map(one, requests))
