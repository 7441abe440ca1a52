"""What the figures were taken on, and how time is taken on it."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def describe(device: torch.device) -> dict[str, Any]:
    import transformers
    import triton

    versions = {
        # a lent machine may get the files alone
        "commit": os.environ.get("COMMIT")
        or _output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "transformers": transformers.__version__,
    }
    if device.type == "cpu":
        return {"device": "cpu", **versions}
    query = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    return {"device": _output(*query), "CUDA": torch.version.cuda, **versions}


def _output(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return result.stdout.strip() or "unknown"


def median_ms(function: Callable[[], object], device: torch.device, *, repeats: int = 30) -> float:
    """Median of calls timed on the device, after three to warm up; one call without a GPU."""
    if device.type == "cpu":
        function()
        return 0.0
    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        times.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in times)


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read and written per second by a large copy on the device."""
    # far beyond the caches
    size = 2**30 if device.type == "cuda" else 2**10
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    destination = torch.empty_like(source)
    ms = median_ms(lambda: destination.copy_(source), device, repeats=10)
    return 2 * size / (ms or 1.0) * 1e3
