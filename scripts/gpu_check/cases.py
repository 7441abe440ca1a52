"""A stage's cases and what is kept of them. Nothing here imports torch."""

from __future__ import annotations

import datetime
import json
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOT_A_MEASUREMENT = "not a measurement: a dry run on the CPU at tiny shapes"
_MAX_ERROR = 600
CONTEXT = """\
Published elsewhere, on other machines, for context only. 2000 ShareGPT requests at 200/s, LLaMA-7B,
one A800-80G: LightLLM 10.59 req/s, vLLM 0.1.2 5.53, TGI 2.70. Qwen3-14B, ShareGPT, one H100: SGLang
FP8 10426 tokens/s in all, vLLM BF16 6596.
"""

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """run: returns figures to be kept, raises if something is wrong.

    checks: the benchmark whose kernels it checks. needs_checked: the benchmark that it is, which is
    not run if one of its kernels is wrong.
    """

    name: str
    run: Callable[[], Figures]
    checks: str = ""
    needs_checked: str = ""


class SkipError(Exception):
    """A case cannot run here, and why."""


class IncompleteError(Exception):
    """A case that failed midway; figures: what it had by then."""

    def __init__(self, why: str, figures: Figures) -> None:
        super().__init__(why)
        self.figures = figures


@contextmanager
def keeping(figures: Figures) -> Iterator[None]:
    """If what is inside fails, what `figures` hold by then is kept with the failure."""
    try:
        yield
    except Exception as error:
        raise IncompleteError(_in_words(error), figures) from error


def carry_out(case: Case) -> tuple[str, float, Figures]:
    """(outcome, seconds, figures); a failed case must not keep the others from their turn."""
    began, outcome, figures = time.monotonic(), "passed", {}
    try:
        figures = case.run()
    except SkipError as error:
        outcome, figures = "skipped", {"why": str(error)}
    except IncompleteError as error:
        outcome, figures = "FAILED", {**error.figures, "error": str(error)}
        traceback.print_exc()
    except Exception as error:
        outcome, figures = "FAILED", {"error": _in_words(error)}
        traceback.print_exc()
    return outcome, time.monotonic() - began, figures


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR]


@dataclass(slots=True)
class Results:
    """A stage's results as JSON and as a readable page, written anew after each case, under a name
    of their own for each device and choice of cases.
    """

    stage: str
    dry_run: bool
    only: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)

    @property
    def all_passed(self) -> bool:
        return all(case["outcome"] != "FAILED" for case in self.cases)

    def add(self, case_name: str, outcome: str, seconds: float, figures: Figures) -> None:
        case = {"case": case_name, "outcome": outcome, "seconds": round(seconds, 2), **figures}
        self.cases.append(case)
        # a dry run's figures say nothing about a GPU
        shown = ("error", "why") if self.dry_run else _figure_names(case)
        texts = [f"{name}={case[name]}" for name in shown if name in case]
        print(" ".join([f"{outcome:8s} {case_name}", *texts]), flush=True)
        self.write()

    @property
    def stem(self) -> Path:
        folder = os.environ.get("OUT") or Path(__file__).parents[2] / "docs" / "benchmarks"
        # "NVIDIA H100 80GB HBM3, 550.54, 81559 MiB"
        parts = (self.stage, str(self.machine.get("device", "")).split(",")[0], self.only)
        name = "-".join(re.sub(r"\W+", "-", part).strip("-").lower() for part in parts if part)
        return Path(folder) / f"{datetime.date.today()}-gpu-{name}"

    def summary(self) -> str:
        """How many cases passed, failed and were skipped, and which those are."""
        names: dict[str, list[str]] = {"passed": [], "FAILED": [], "skipped": []}
        for case in self.cases:
            names[case["outcome"]].append(case["case"])
        parts = [f"{len(cases)} {outcome}" for outcome, cases in names.items()]
        others = [f"\n  {o}: {name}" for o in ("FAILED", "skipped") for name in names[o]]
        return ", ".join(parts) + "".join(others)

    def write(self) -> None:
        """Make the JSON and the page; a dry run makes both, to see that it can, and keeps none."""
        document = {"stage": self.stage, "machine": self.machine, "cases": self.cases}
        texts = {".json": json.dumps(document, indent=1) + "\n", ".md": self._page()}
        if self.dry_run:
            return
        self.stem.parent.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            self.stem.with_suffix(suffix).write_text(text)

    def _page(self) -> str:
        chosen = f", cases with {self.only!r} in their name" if self.only else ""
        lines = [f"# `make gpu-check STAGE={self.stage}`{chosen}", "", self.summary(), ""]
        lines += [f"- {name}: {value}" for name, value in self.machine.items()]
        lines += ["", "| case | outcome | figures |", "|---|---|---|"]
        for case in self.cases:
            figures = [f"{name} {case[name]}" for name in _figure_names(case)]
            lines.append(f"| {case['case']} | {case['outcome']} | {'; '.join(figures)} |")
        for case in self.cases:
            if case.get("rows"):
                lines += ["", f"## {case['case']}", "", *_table(case["rows"])]
        return "\n".join([*lines, "", *([CONTEXT] if self.stage == "bench" else [])])


def _figure_names(case: Figures) -> list[str]:
    """Of those that are shown in a line; `rows` make a table."""
    return [name for name in case if name not in ("case", "outcome", "rows")]


def _table(rows: list[Figures]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return lines + [f"| {' | '.join(_cell(row.get(name, '')) for name in names)} |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_cell(one)}" for name, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
