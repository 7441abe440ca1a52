"""Compiles every call for every target in two processes and judges the kernels."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton

from ahead_of_time import checks, compile_only_driver, source_scan
from ahead_of_time.compiled_kernel import CompiledKernel, examine
from lightllm_kernels import attention_configs, triton_launch

__all__ = ["TARGETS", "Outcome", "Verdict", "compile_calls", "judge", "use_cache"]

TARGETS = (80, 90)


@dataclass(frozen=True, slots=True)
class Outcome:
    """kernels: what the calls compiled, equal kernels once per launcher; table_rows: rows of
    shipped tables whose values were found in a compiled kernel; failures: calls that raised, or
    did not use their row.
    """

    kernels: list[CompiledKernel]
    table_rows: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """problems: per index of a kernel; missing: what no call reached, and exceptions that nothing
    needs.
    """

    problems: dict[int, list[str]]
    missing: list[str]


def compile_calls(
    module_name: str, targets: Sequence[int] = TARGETS, *, only: str = "", processes: int = 2
) -> Outcome:
    """Compile `calls(sm)` of the module for each target: those whose name contains `only`."""
    use_cache()
    jobs = [
        (module_name, sm, index)
        for sm in targets
        for index, call in enumerate(_calls(module_name, sm))
        if only in call.name
    ]
    # not spawn: importing torch takes longer than a warm run
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        outcomes = list(pool.map(_compile_call, jobs))
    kernels: dict[tuple[str, int, str], CompiledKernel] = {}
    for kernel in (k for outcome in outcomes for k in outcome.kernels):
        # the first call names the kernel, and its time is that of the compilation
        kernels.setdefault((kernel.launcher, kernel.sm, kernel.key), kernel)
    return Outcome(
        sorted(kernels.values(), key=lambda k: (k.kernel, k.sm, k.launcher)),
        {row for outcome in outcomes for row in outcome.table_rows},
        [failure for outcome in outcomes for failure in outcome.failures],
    )


def judge(outcome: Outcome, package: Path | None) -> Verdict:
    """Check each kernel and, if the package's source folder is given, that all its kernels,
    launchers and table rows were reached.
    """
    kernels = outcome.kernels
    found = {i: p for i, kernel in enumerate(kernels) if (p := checks.problems(kernel))}
    if package is None:
        return Verdict(found, [])
    missing = [
        *(f"kernel {n}" for n in source_scan.kernel_entries(package) - {k.kernel for k in kernels}),
        *(f"launcher {n}" for n in source_scan.launchers(package) - {k.launcher for k in kernels}),
        *(f"row {row}" for row in _shipped_rows(package) - outcome.table_rows),
    ]
    return Verdict(
        found, sorted(missing) + checks.unused_exceptions(kernels, checks.ALLOWED_STACKS)
    )


def use_cache() -> None:
    """Keep compiled kernels between runs, from now on in this process; each Triton has a folder."""
    # what triton 3.9 does unless told; it warns that 3.10 will not
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "lightllm-kubernetes" / f"triton-{triton.__version__}"
    os.environ["TRITON_CACHE_DIR"] = str(folder)


@cache
def _calls(module_name: str, sm: int) -> Any:
    return import_module(module_name).calls(sm)


def _shipped_rows(package: Path) -> set[str]:
    """The keys of all tables, each in a module "…_configs" with `rows()`."""
    tables = (import_module(f"{package.name}.{f.stem}") for f in package.glob("*_configs.py"))
    return {str(key) for table in tables for key, _ in table.rows()}


def _compile_call(job: tuple[str, int, int]) -> Outcome:
    module_name, sm, index = job
    compile_only_driver.activate(sm)
    call = _calls(module_name, sm)[index]
    outcome = Outcome([])
    begin = time.perf_counter()

    def record(compiled: Any) -> None:
        nonlocal begin
        seconds = time.perf_counter() - begin
        outcome.kernels.append(
            examine(compiled, launcher=call.launcher_name, case=call.case, seconds=seconds)
        )
        if call.row and _has_values(compiled, call.row[1]):
            outcome.table_rows.add(str(call.row[0]))
        begin = time.perf_counter()

    # a meta tensor has no compute capability: let the launchers look up the target's rows
    device = mock.patch.object(attention_configs, "compute_capability", return_value=sm)
    name = f"{call.name}, sm_{sm}"
    try:
        with device, torch.inference_mode(), triton_launch.compile_only(record):
            call.run()
    except Exception as error:
        outcome.failures.append(f"{name}: {type(error).__name__}: {error}")
        return outcome
    if call.row and not outcome.table_rows:
        outcome.failures.append(f"{name}: no kernel has the values of {call.row[1]}")
    return outcome


def _has_values(compiled: Any, config: Any) -> bool:
    """Whether the kernel has the config's warps and stages, and its blocks where it has such."""
    arguments = compiled.src.fn.arg_names
    blocks = {arguments[path[0]]: value for path, value in compiled.src.constants.items()}
    options = {n: getattr(compiled.metadata, n) for n in ("num_warps", "num_stages")}
    return all(
        (options | blocks).get(name if name in options else name.upper(), value) == value
        for name, value in asdict(config).items()
    )
