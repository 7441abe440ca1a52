"""The compile gate: every kernel compiles for sm_80 and sm_90 within the rules, on any machine.

The gate runs in its own process: here kernels are interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lightllm_kernels
import pytest

from ahead_of_time import source_scan

PACKAGE = Path(lightllm_kernels.__file__).parent
SUPPORT = Path(source_scan.__file__).parents[1]


def run_gate(result, *arguments, timeout):
    """(exit status, what it wrote to `result`, what it printed)"""
    search = os.pathsep.join([str(PACKAGE.parent), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "ahead_of_time", "--json", result, *arguments],
        env=os.environ | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(result.read_text()), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_kernel_passes_the_gate(tmp_path):
    status, result, output = run_gate(tmp_path / "gate.json", timeout=870)
    print(output)
    assert (result["missing"], result["failures"]) == ([], [])
    refused = [(k["kernel"], k["case"], k["sm"], k["problems"]) for k in result["kernels"]]
    assert [r for r in refused if r[-1]] == []
    assert status == 0
    assert {k["sm"] for k in result["kernels"]} == {80, 90}


def test_the_gate_refuses_kernels_that_break_a_rule(tmp_path):
    status, result, _ = run_gate(
        tmp_path / "gate.json", "--calls", "ahead_of_time.refused_calls", timeout=110
    )
    found = {}
    for kernel in result["kernels"]:
        name = kernel["launcher"].rpartition(".")[2]
        found.setdefault(name, []).append(" ".join(kernel["problems"]))
    assert status == 1
    assert found.keys() == {
        "spilling", "oversized", "without_tensor_cores", "upcast", "narrow", "wide", "raising",
    }  # fmt: skip
    for problems in found["spilling"]:
        assert "spills" in problems
    assert "shared memory 294912 > 166912" in " ".join(found["oversized"])
    assert "shared memory 327680 > 232448" in " ".join(found["oversized"])
