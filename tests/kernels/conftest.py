"""Fixtures of the kernel tests: poisoned memory, one table of tolerances, Triton's interpreter.

Without a GPU the kernels run in the interpreter. `triton.jit` reads the variable when a kernel is
defined, so it is set here, before any test imports one.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# relative and absolute tolerance against the float32 reference, per dtype of the op
TOLERANCES = {
    torch.float32: (1e-5, 2e-6),
    torch.bfloat16: (1.6e-2, 1e-2),
    torch.float16: (2e-3, 1e-3),
}


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def _poisoned_empty(monkeypatch):
    """`torch.empty` hands out NaN (or a large integer), so that reading it before writing shows."""
    real_empty, real_empty_like = torch.empty, torch.empty_like

    def poison(tensor):
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor if tensor.dtype == torch.bool else tensor.fill_(77)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(real_empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(real_empty_like(*a, **k)))


@pytest.fixture(autouse=True)
def _no_bfloat16_in_the_interpreter(monkeypatch):
    """Triton's interpreter computes garbage from bfloat16 without an error: refuse it instead."""
    from triton.runtime.interpreter import InterpretedFunction

    real_run = InterpretedFunction.run

    def run(kernel, *args, **options):
        for value in (*args, *options.values()):
            if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16:
                raise ValueError("Triton's interpreter cannot compute in bfloat16")
        return real_run(kernel, *args, **options)

    monkeypatch.setattr(InterpretedFunction, "run", run)


@pytest.fixture
def assert_close():
    """Compare with the reference under the one table of tolerances, or under given ones."""

    # not torch.testing: importing it takes 8 s
    def check(actual, expected, *, rtol=None, atol=None):
        table = TOLERANCES.get(actual.dtype, (0.0, 0.0))
        rtol, atol = table[0] if rtol is None else rtol, table[1] if atol is None else atol
        assert actual.shape == expected.shape, (actual.shape, expected.shape)
        error = (actual.double() - expected.double()).abs()
        excess = error - atol - rtol * expected.double().abs()
        assert bool((excess <= 0).all()), (
            f"{int((~(excess <= 0)).sum())} of {error.numel()} differ, worst {float(error.max())}"
        )

    return check
