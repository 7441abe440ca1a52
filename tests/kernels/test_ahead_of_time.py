"""The compile gate: every kernel compiles for sm_80 and sm_90 within the rules, on any machine.

The gate runs in its own process: here kernels are interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lightllm_kernels
from ahead_of_time import checks, gate, source_scan
from ahead_of_time.compiled_kernel import CompiledKernel

PACKAGE = Path(lightllm_kernels.__file__).parent
SUPPORT = Path(source_scan.__file__).parents[1]


def run_module(*arguments, timeout):
    """`python -m` in a process in which kernels are compiled."""
    search = os.pathsep.join([str(PACKAGE.parent), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=os.environ | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_gate(result, *arguments, timeout):
    """(exit status, what it wrote to `result`, what it printed)"""
    done = run_module("ahead_of_time", "--json", result, *arguments, timeout=timeout)
    assert result.exists(), done.stdout + done.stderr
    return done.returncode, json.loads(result.read_text()), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kernel_passes_the_gate(tmp_path):
    status, result, output = run_gate(tmp_path / "gate.json", timeout=1770)
    print(output)
    assert (result["missing"], result["failures"]) == ([], [])
    refused = [(k["kernel"], k["case"], k["sm"], k["problems"]) for k in result["kernels"]]
    assert [r for r in refused if r[-1]] == []
    assert status == 0
    assert {k["sm"] for k in result["kernels"]} == {80, 90}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_gate_refuses_kernels_that_break_a_rule(tmp_path):
    status, result, output = run_gate(
        tmp_path / "gate.json", "--calls", "ahead_of_time.refused_calls", timeout=290
    )
    found = {}
    for kernel in result["kernels"]:
        found[kernel["launcher"].rpartition(".")[2], kernel["sm"]] = " ".join(kernel["problems"])
    assert status == 1
    for sm, shared in ((80, "294912 > 101376"), (90, "327680 > 232448")):
        assert "spills: a stack of" in found["spilling", sm]
        assert f"shared memory {shared} bytes" in found["oversized", sm]
        assert "without a tensor-core instruction" in found["without_tensor_cores", sm]
        assert found["upcast", sm] == "1 of 1 dots are not 16-bit ones on tensor cores"
        assert found["narrow", sm].startswith("32-bit product of a stride")
        assert found["wide", sm] == ""
    assert [f.partition(",")[0] for f in result["failures"]] == [
        "ahead_of_time.refused_calls.raising"
    ] * 2
    for problem in ("a stack of", "shared memory", "tensor", "32-bit product", "raising"):
        assert problem in output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_serving_compiles_nothing_that_the_warm_up_has_not():
    done = run_module("ahead_of_time.serving_variants", timeout=290)
    assert done.returncode == 0, done.stderr
    forms = json.loads(done.stdout)
    assert {kernel: late for kernel, (warm, late) in forms.items() if warm != late} == {}
    # what differs: one split or several, greedy or drawn or filtered, bias or counts, with a chosen
    # token or without, with a residual or without
    several = {
        "_decode_split_kernel": 2,
        "_offers_kernel": 3,
        "_scatter_add_kernel": 2,
        "_log_softmax_kernel": 2,
        "_rms_norm_kernel": 2,
    }
    assert {kernel: late for kernel, (_, late) in forms.items() if late > 1} == several
    assert "_combine_splits_kernel" in forms


def test_a_kernel_or_launcher_that_no_call_reaches_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "ALLOWED_STACKS", ())
    kernel = compiled_kernel(kernel="ops.double._double_kernel", launcher="ops.double.double")
    assert gate.judge(gate.Outcome([kernel]), ops_package(tmp_path)).missing == [
        "kernel ops.halve._halve_kernel",
        "launcher ops.double.double_twice",
        "launcher ops.halve.halve",
    ]


def test_kernels_and_launchers_are_found_in_the_source(tmp_path):
    package = ops_package(tmp_path)
    # _scale is called by a kernel, _start_halve and `launch` itself are not public ops
    assert source_scan.kernel_entries(package) == {
        "ops.double._double_kernel",
        "ops.halve._halve_kernel",
    }
    assert source_scan.launchers(package) == {
        "ops.double.double",
        "ops.double.double_twice",
        "ops.halve.halve",
    }


def test_a_stack_is_allowed_up_to_its_size_and_while_it_is_needed():
    allowed = [checks.AllowedStack("a.kernel", 16, "measured faster than without")]
    within, beyond = compiled_kernel(stack_bytes=16), compiled_kernel(stack_bytes=24)
    other = compiled_kernel(kernel="b.kernel", stack_bytes=8)
    assert checks.problems(within, allowed) == []
    assert checks.problems(within) == ["spills: a stack of 16 bytes per thread"]
    assert checks.problems(beyond, allowed) == ["spills: a stack of 24 bytes per thread"]
    assert checks.problems(other, allowed) == ["spills: a stack of 8 bytes per thread"]
    assert checks.unused_exceptions([within], allowed) == []
    assert checks.unused_exceptions([other], allowed) != []


def test_few_kernels_may_spill():
    assert len(checks.ALLOWED_STACKS) <= 3
    assert all(allowed.reason for allowed in checks.ALLOWED_STACKS)


def compiled_kernel(**fields):
    defaults = {
        "kernel": "a.kernel", "launcher": "a.op", "case": "", "key": "", "sm": 80,
        "num_warps": 4, "registers": 32, "stack_bytes": 0, "shared_bytes": 0, "dots": 0,
        "slow_dots": 0, "is_16_bit": True, "tensor_cores": "", "narrow_products": (),
        "seconds": 0.0,
    }  # fmt: skip
    return CompiledKernel(**(defaults | fields))


def ops_package(folder):
    """Source of a package of two ops in the form that ours have."""
    package = folder / "ops"
    package.mkdir()
    (package / "triton_launch.py").write_text('__all__ = ["launch"]\ndef launch(kernel): ...\n')
    (package / "double.py").write_text(
        """
import triton
from ops.triton_launch import launch
__all__ = ["double", "double_twice"]
@triton.jit
def _scale(x): return x
@triton.jit(noinline=True)
def _double_kernel(x): return _scale(x)
def double(x): launch(_double_kernel)
def double_twice(x): double(double(x))
def _private(x): double(x)
"""
    )
    (package / "halve.py").write_text(
        """
import triton
from ops import triton_launch
from ops.double import _scale
__all__ = ["halve", "halve_on_the_host"]
@triton.jit
def _halve_kernel(x): return _scale(x)
def _start_halve(x): triton_launch.launch(_halve_kernel)
def halve(x): _start_halve(x)
def halve_on_the_host(x): return x / 2
"""
    )
    return package
