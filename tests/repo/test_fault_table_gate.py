"""CI fails on a fault table with an empty cell, also where no cell's test was run at all."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from fault_table import CELLS

ROOT = Path(__file__).parents[2]
FAULTS = "tests/server/faults/test_fault_table.py"


def test_an_empty_cell_fails_the_run_and_is_printed() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--fault-table"]
    command += [FAULTS, "-k", "no_such_cell"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1, outcome.stdout
    assert outcome.stdout.count("(empty)") == len(CELLS) == 24
    assert "24 empty cells: failed" in outcome.stdout


def test_ci_requires_the_table() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^test: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert "--fault-table" in recipe
    assert "exec make test" in (ROOT / ".ci/run").read_text()
