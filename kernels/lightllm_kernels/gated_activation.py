"""Gated activations: y = act(gate) * up, where gate and up are the halves of one row (Shazeer,
2020): SwiGLU with silu, GeGLU with gelu.

gelu is exact, x Φ(x), or its tanh approximation (Hendrycks and Gimpel, 2016), which is
x sigmoid(2 √(2/π) (x + 0.044715 x³)). On a GPU the product is formed in float32.
"""

from __future__ import annotations

from math import pi, sqrt
from typing import Literal

import torch
import triton
import triton.language as tl
from torch.nn import functional

from lightllm_kernels.checks import require, require_rows, require_shape
from lightllm_kernels.row_tiles import row_strides
from lightllm_kernels.triton_launch import launch, runs_triton

__all__ = [
    "gelu_and_mul",
    "gelu_and_mul_reference",
    "silu_and_mul",
    "silu_and_mul_reference",
]

# elements of a row that one program handles: 8 a thread
_BLOCK, _NUM_WARPS = 1024, 4
_SQRT_HALF = tl.constexpr(sqrt(0.5))
_TANH_FACTOR = tl.constexpr(2 * sqrt(2 / pi))
_TANH_CUBIC = tl.constexpr(0.044715)


def silu_and_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2I] -> [T, I] in the same dtype; float32 inside."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def gelu_and_mul_reference(
    gate_up: torch.Tensor, *, approximate: Literal["none", "tanh"] = "none"
) -> torch.Tensor:
    """gate_up: [T, 2I] -> [T, I] in the same dtype; float32 inside."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    if approximate == "tanh":
        inner = sqrt(2 / pi) * (gate + 0.044715 * gate**3)
        activated = 0.5 * gate * (1 + torch.tanh(inner))
    else:
        activated = 0.5 * gate * (1 + torch.erf(gate * sqrt(0.5)))
    return (activated * up).to(gate_up.dtype)


@triton.jit(do_not_specialize=["rows_per_group"])
def _gated_activation_kernel(
    gate_up_ptr,
    out_ptr,
    rows_per_group,
    size,
    stride_gate_up_group,
    stride_gate_up_row,
    stride_out_group,
    stride_out_row,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of one row."""
    index = tl.program_id(0).to(tl.int64)
    group, row = index // rows_per_group, index % rows_per_group
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    row_ptr = gate_up_ptr + group * stride_gate_up_group + row * stride_gate_up_row
    gate = tl.load(row_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(row_ptr + size + offs, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        activated = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu_tanh":
        inner = gate + gate * gate * gate * _TANH_CUBIC
        activated = gate * tl.sigmoid(inner * _TANH_FACTOR)
    else:
        activated = 0.5 * gate * (1 + tl.erf(gate * _SQRT_HALF))
    offs_out = group * stride_out_group + row * stride_out_row + offs
    tl.store(out_ptr + offs_out, (activated * up).to(out_ptr.dtype.element_ty), mask=mask)


def silu_and_mul(gate_up: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu(first half) * second half of each row.

    gate_up: [T, 2I] float32, bfloat16 or float16
    Writes into `out` [T, I] if given and returns it.
    """
    out = _checked_out(gate_up, out)
    if runs_triton(gate_up):
        return _launch(gate_up, out, "silu")
    inner = out.shape[-1]
    torch.ops.aten.silu.out(gate_up[..., :inner], out=out)
    return out.mul_(gate_up[..., inner:])


def gelu_and_mul(
    gate_up: torch.Tensor,
    *,
    approximate: Literal["none", "tanh"] = "none",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """gelu(first half) * second half of each row.

    gate_up: [T, 2I] float32, bfloat16 or float16
    Writes into `out` [T, I] if given and returns it.
    """
    require(approximate in ("none", "tanh"), f"approximate is none or tanh, got {approximate!r}")
    out = _checked_out(gate_up, out)
    if runs_triton(gate_up):
        return _launch(gate_up, out, "gelu_tanh" if approximate == "tanh" else "gelu")
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.mul(functional.gelu(gate, approximate=approximate), up, out=out)


def _checked_out(gate_up: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    require_rows("gate_up", gate_up)
    require(gate_up.shape[-1] % 2 == 0, f"gate_up's width must be even, got {gate_up.shape[-1]}")
    shape = (*gate_up.shape[:-1], gate_up.shape[-1] // 2)
    if out is None:
        return torch.empty(shape, dtype=gate_up.dtype, device=gate_up.device)
    require_shape("out", out, *shape)
    return out


def _launch(gate_up: torch.Tensor, out: torch.Tensor, activation: str) -> torch.Tensor:
    num_rows, per_group, strides = row_strides(gate_up=gate_up, out=out)
    size = out.shape[-1]
    if num_rows and size:
        launch(
            _gated_activation_kernel,
            (num_rows, triton.cdiv(size, _BLOCK)),
            gate_up,
            out,
            per_group,
            size,
            *strides,
            ACTIVATION=activation,
            BLOCK=_BLOCK,
            num_warps=_NUM_WARPS,
        )
    return out
