"""Compiles every call for every target in two processes and judges the kernels."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
from lightllm_kernels import triton_launch

from ahead_of_time import checks, compile_only_driver, source_scan
from ahead_of_time.compiled_kernel import CompiledKernel, examine

__all__ = ["TARGETS", "Verdict", "compile_calls", "judge"]

TARGETS = (80, 90)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """problems: per index of a row; missing: what no call reached, or no longer is an exception;
    failures: calls that raised.
    """

    rows: list[CompiledKernel]
    problems: dict[int, list[str]]
    missing: list[str]
    failures: list[str]

    @property
    def passed(self) -> bool:
        return not (self.problems or self.missing or self.failures)


def cache_folder() -> Path:
    """Where compiled kernels are kept between runs; each Triton has its own."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lightllm-kubernetes" / f"triton-{triton.__version__}"


def compile_calls(
    module_name: str, targets: Sequence[int] = TARGETS, processes: int = 2
) -> tuple[list[CompiledKernel], list[str]]:
    """Compile `calls(sm)` of the module for each target.

    Returns the kernels, equal ones once per launcher, and what raised.
    """
    # what triton 3.9 does unless told; it warns that 3.10 will not
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    os.environ["TRITON_CACHE_DIR"] = str(cache_folder())
    jobs = [(module_name, sm, i) for sm in targets for i in range(len(_calls(module_name, sm)))]
    # not spawn: importing torch takes longer than a warm run
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        results = list(pool.map(_compile_call, jobs))
    rows = {
        (row.launcher, row.sm, row.key): row
        # the first call of each kernel names it, and its time is that of the compilation
        for rows, _ in reversed(results)
        for row in reversed(rows)
    }
    ordered = sorted(rows.values(), key=lambda r: (r.kernel, r.sm, r.launcher))
    return ordered, [failure for _, failure in results if failure]


def judge(rows: list[CompiledKernel], failures: list[str], package: Path) -> Verdict:
    """Check each kernel, and that every kernel and launcher of the package was reached."""
    found = {i: p for i, row in enumerate(rows) if (p := checks.problems(row))}
    missing = [
        *(f"kernel {k}" for k in source_scan.kernel_entries(package) - {r.kernel for r in rows}),
        *(f"launcher {n}" for n in source_scan.launchers(package) - {r.launcher for r in rows}),
    ]
    missing = sorted(missing) + checks.unused_exceptions(rows)
    return Verdict(rows=rows, problems=found, missing=missing, failures=failures)


def _calls(module_name: str, sm: int) -> Any:
    return import_module(module_name).calls(sm)


def _compile_call(job: tuple[str, int, int]) -> tuple[list[CompiledKernel], str]:
    """The kernels of one call, or what it raised."""
    module_name, sm, index = job
    compile_only_driver.activate(sm)
    call = _calls(module_name, sm)[index]
    rows: list[CompiledKernel] = []
    begin = time.perf_counter()

    def record(compiled: Any) -> None:
        nonlocal begin
        seconds = time.perf_counter() - begin
        rows.append(examine(compiled, launcher=call.launcher_name, case=call.case, seconds=seconds))
        begin = time.perf_counter()

    try:
        with torch.inference_mode(), triton_launch.compile_only(record):
            call.run()
    except Exception as error:
        return rows, f"{call.launcher_name} ({call.case}, sm_{sm}): {type(error).__name__}: {error}"
    return rows, ""
