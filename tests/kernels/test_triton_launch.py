"""Where an op runs, and what the tests refuse to run in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch
import triton
import triton.language as tl

from lightllm_kernels.triton_launch import launch, runs_triton, triton_everywhere

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)


@triton.jit
def _double_kernel(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    tl.store(out_ptr + offs, tl.load(x_ptr + offs, mask=mask, other=0.0) * 2, mask=mask)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_interpreter_runs_a_kernel(dtype):
    x, out = torch.randn(123).to(dtype), torch.empty(123, dtype=dtype)
    launch(_double_kernel, (4,), x, out, 123, BLOCK=32)
    assert torch.equal(out, x * 2)


@interpreted
@pytest.mark.parametrize("which", ["x_ptr", "out_ptr"])
def test_bfloat16_is_refused_in_the_interpreter(which):
    tensors = {"x_ptr": torch.zeros(8), "out_ptr": torch.zeros(8)}
    tensors[which] = tensors[which].bfloat16()
    with pytest.raises(ValueError, match="bfloat16"):
        launch(_double_kernel, (1,), *tensors.values(), 8, BLOCK=8)
    with pytest.raises(ValueError, match="bfloat16"):
        launch(_double_kernel, (1,), **tensors, size=8, BLOCK=8)


def test_a_tensor_on_the_cpu_uses_the_torch_form_unless_told_otherwise():
    tensor = torch.zeros(1)
    assert not runs_triton(tensor)
    with triton_everywhere():
        assert runs_triton(tensor)
    assert not runs_triton(tensor)
