"""The process that runs a stage's cases and reports each to its parent, see `supervise`."""

from __future__ import annotations

import faulthandler
import importlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from cases import carry_out
from machine import describe

ROOT = Path(__file__).parents[2]
# a context is broken, all else must run in another process
EXIT_DEVICE_LOST = 75


def work(stage: str, *, dry_run: bool, only: str, first: int, failed: set[int], report: int) -> int:
    """Run the cases from number `first` on; returns the exit status. failed: the numbers of those
    that did before. report: a file descriptor.
    """
    faulthandler.enable()
    # thousands of streams over HTTP
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with open(report, "w", buffering=1, encoding="utf-8") as pipe:

        def tell(**message: Any) -> None:
            # numpy's numbers, paths: as what they print
            pipe.write(json.dumps(message, default=str) + "\n")

        device = torch.device("cpu" if dry_run else "cuda")
        module = importlib.import_module(f"{stage.rstrip('s')}_cases")
        cases = [c for c in module.make_cases(device, tiny=dry_run) if only in c.name]
        tell(machine=describe(device), cases=[case.name for case in cases])
        wrong = {cases[number].checks for number in failed}
        for case in cases[first:]:
            tell()
            if case.needs_checked and case.needs_checked in wrong:
                why = {"why": "one of its kernels is wrong"}
                tell(outcome="skipped", seconds=0.0, figures=why)
                continue
            outcome, seconds, figures = carry_out(case)
            tell(outcome=outcome, seconds=seconds, figures=figures)
            if outcome == "FAILED":
                wrong.add(case.checks)
            if outcome == "FAILED" and not _works(device):
                print("gpu-check: the GPU's context is lost", file=sys.stderr)
                return EXIT_DEVICE_LOST
    return 0


def _works(device: torch.device) -> bool:
    """False after an illegal access, when every later call in this process would fail, and after a
    recording that failed and left the allocator inside it.
    """
    try:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return float(torch.ones(8, device=device).sum()) == 8.0
    except RuntimeError:
        return False
