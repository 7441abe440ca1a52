"""Ranks may start and load at their own speed; in a step, a peer that does not come is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("late_rank.py")


def run(run_dir: Path, late_to: str) -> list[tuple[int, str]]:
    """Exit status and output of two ranks, of which the second is late by three time limits."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(rank), str(run_dir), late_to],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=100)[0].strip() for rank in ranks]
    return [(rank.returncode, output) for rank, output in zip(ranks, outputs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("late_to", ["start", "load"])
def test_ranks_wait_for_each_others_loading(tmp_path: Path, late_to: str) -> None:
    assert run(tmp_path, late_to) == [(0, "1"), (0, "1")]


@pytest.mark.slow
def test_ranks_do_not_wait_for_one_that_misses_a_step(tmp_path: Path) -> None:
    (status, output), _ = run(tmp_path, "step")
    assert status != 0
    assert output == ""
