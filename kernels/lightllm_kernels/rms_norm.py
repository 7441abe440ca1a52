"""RMS norm: y = x / sqrt(mean(x²) + eps) * weight over the last dimension (Zhang and Sennrich,
2019).

Statistics are float32. The weight is applied after the cast back to the input's dtype, as LLaMA's
own code does. On a GPU rows of up to `MAX_ROW` elements are read once, and added to the residual on
the way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn import functional

from lightllm_kernels.checks import require_shape
from lightllm_kernels.row_tiles import row_strides, row_tile
from lightllm_kernels.triton_launch import launch, runs_triton

__all__ = ["add_rms_norm", "rms_norm", "rms_norm_reference"]


def rms_norm_reference(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """hidden: [T, E], weight: [E] -> [T, E] in hidden's dtype; float32 inside."""
    wide = hidden.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(hidden.dtype) * weight.to(hidden.dtype)


@triton.jit(do_not_specialize=["num_rows", "rows_per_group"])
def _rms_norm_kernel(
    hidden_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    num_rows,
    rows_per_group,
    size,
    stride_hidden_group,
    stride_hidden_row,
    stride_residual_group,
    stride_residual_row,
    stride_out_group,
    stride_out_row,
    eps,
    ADDS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One tile of rows: residual += hidden if ADDS, out = norm of that."""
    offs_row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    offs_size = tl.arange(0, BLOCK_SIZE)[None, :]
    mask_size = offs_size < size
    mask = (offs_row < num_rows) & mask_size
    group, row = offs_row // rows_per_group, offs_row % rows_per_group
    offs_hidden = group * stride_hidden_group + row * stride_hidden_row + offs_size
    wide = tl.load(hidden_ptr + offs_hidden, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        offs_residual = group * stride_residual_group + row * stride_residual_row + offs_size
        wide += tl.load(residual_ptr + offs_residual, mask=mask, other=0.0).to(tl.float32)
        total = wide.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + offs_residual, total, mask=mask)
        # what is normed is what the residual stream holds
        wide = total.to(tl.float32)
    variance = tl.sum(wide * wide, axis=1, keep_dims=True) / size
    dtype = out_ptr.dtype.element_ty
    normed = (wide * tl.rsqrt(variance + eps)).to(dtype).to(tl.float32)
    weight = tl.load(weight_ptr + offs_size, mask=mask_size, other=0.0).to(dtype).to(tl.float32)
    offs_out = group * stride_out_group + row * stride_out_row + offs_size
    tl.store(out_ptr + offs_out, (normed * weight).to(dtype), mask=mask)


def _launch(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> torch.Tensor:
    added = hidden if residual is None else residual
    num_rows, per_group, strides = row_strides(hidden=hidden, residual=added, out=out)
    block_rows, block_size, num_warps = row_tile(hidden.shape[-1])
    if num_rows:
        launch(
            _rms_norm_kernel,
            (triton.cdiv(num_rows, block_rows),),
            hidden,
            added,
            weight,
            out,
            num_rows,
            per_group,
            hidden.shape[-1],
            *strides,
            eps,
            ADDS=residual is not None,
            BLOCK_ROWS=block_rows,
            BLOCK_SIZE=block_size,
            num_warps=num_warps,
        )
    return out


def rms_norm(
    hidden: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """RMS norm of each row.

    hidden: [..., E] float32, bfloat16 or float16
    weight: [E] same dtype
    Writes into `out` ([..., E], may be `hidden` itself) if given and returns it. ValueError on a
    wrong weight shape.
    """
    require_shape("weight", weight, hidden.shape[-1])
    if runs_triton(hidden):
        if out is None:
            out = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
        else:
            require_shape("out", out, *hidden.shape)
        return _launch(hidden, None, weight, eps, out)
    if hidden.dtype == torch.float32:
        normed = functional.rms_norm(hidden, weight.shape, weight, eps)
    else:
        normed = rms_norm_reference(hidden, weight, eps)
    if out is None:
        return normed
    return out.copy_(normed)


def add_rms_norm(
    hidden: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add to the residual stream, then norm it.

    hidden: [T, E]; residual: [T, E]; weight: [E]
    Updates `residual` in place (residual += hidden) and returns its norm [T, E], a new tensor.
    """
    require_shape("residual", residual, *hidden.shape)
    if runs_triton(hidden):
        require_shape("weight", weight, hidden.shape[-1])
        out = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
        return _launch(hidden, residual, weight, eps, out)
    residual.add_(hidden)
    return rms_norm(residual, weight, eps)
