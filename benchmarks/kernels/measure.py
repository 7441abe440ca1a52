"""What the kernel benchmarks share: test first, then the best of many calls."""

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[2] / "tests" / "kernels"


def require_passing(test: str) -> None:
    """Run a kernel's tests; leave without printing a number if one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", str(TESTS / test)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{test} fails, so there is nothing to measure:\n{result.stdout[-2000:]}")


def row_of(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`name` and what `measure` returns, or its `error`: the rows before and behind it are kept."""
    try:
        return {"name": name, **measure()}
    except Exception as error:
        traceback.print_exc()
        return {"name": name, "error": f"{type(error).__name__}: {error}"[:300]}


def test_and_print(
    run: Callable[[Any, bool], list[dict[str, Any]]], line: Callable[[dict[str, Any]], str]
) -> None:
    """An attention benchmark: its kernels' tests, then a line for each row of `run`."""
    import torch

    for test in ("test_attention.py", "test_triton_attention.py"):
        require_passing(test)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for row in run(device, False):
        if "error" in row:
            sys.exit(f"{row['name']}: {row['error']}")
        print(line(row), flush=True)


def best_ms(function: Callable[[], object], seconds: float = 0.5) -> float:
    """The shortest of the calls that fit into `seconds`, after two to warm up."""
    function()
    function()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best * 1e3
