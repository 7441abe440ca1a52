"""Layer norm: y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimension (Ba, Kiros
and Hinton, 2016).

float32 inside; the variance is of the differences from the mean, so that a large mean costs no
digits. On a GPU rows of up to `MAX_ROW` elements are read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn import functional

from lightllm_kernels.checks import require_shape
from lightllm_kernels.row_tiles import row_strides, row_tile
from lightllm_kernels.triton_launch import launch, runs_triton

__all__ = ["layer_norm", "layer_norm_reference"]


def layer_norm_reference(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """hidden: [T, E], weight, bias: [E] -> [T, E] in hidden's dtype; float32 inside."""
    wide = hidden.float()
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight.float()
    return (normed if bias is None else normed + bias.float()).to(hidden.dtype)


@triton.jit(do_not_specialize=["num_rows", "rows_per_group"])
def _layer_norm_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    rows_per_group,
    size,
    stride_hidden_group,
    stride_hidden_row,
    stride_out_group,
    stride_out_row,
    eps,
    HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """One tile of rows."""
    offs_row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    offs_size = tl.arange(0, BLOCK_SIZE)[None, :]
    mask_size = offs_size < size
    mask = (offs_row < num_rows) & mask_size
    group, row = offs_row // rows_per_group, offs_row % rows_per_group
    offs_hidden = group * stride_hidden_group + row * stride_hidden_row + offs_size
    wide = tl.load(hidden_ptr + offs_hidden, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(wide, axis=1, keep_dims=True) / size
    centred = tl.where(mask, wide - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / size
    weight = tl.load(weight_ptr + offs_size, mask=mask_size, other=0.0).to(tl.float32)
    normed = centred * tl.rsqrt(variance + eps) * weight
    if HAS_BIAS:
        normed += tl.load(bias_ptr + offs_size, mask=mask_size, other=0.0).to(tl.float32)
    offs_out = group * stride_out_group + row * stride_out_row + offs_size
    tl.store(out_ptr + offs_out, normed.to(out_ptr.dtype.element_ty), mask=mask)


def layer_norm(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Layer norm of each row.

    hidden: [..., E] float32, bfloat16 or float16
    weight: [E] same dtype; bias: [E] same dtype, or None
    Writes into `out` ([..., E], may be `hidden` itself) if given and returns it. ValueError on a
    wrong shape.
    """
    require_shape("weight", weight, hidden.shape[-1])
    if bias is not None:
        require_shape("bias", bias, hidden.shape[-1])
    if out is not None:
        require_shape("out", out, *hidden.shape)
    if runs_triton(hidden):
        return _launch(hidden, weight, bias, eps, out)
    normed = functional.layer_norm(hidden, weight.shape, weight, bias, eps)
    return normed if out is None else out.copy_(normed)


def _launch(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor | None,
) -> torch.Tensor:
    if out is None:
        out = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    num_rows, per_group, strides = row_strides(hidden=hidden, out=out)
    block_rows, block_size, num_warps = row_tile(hidden.shape[-1])
    if num_rows:
        launch(
            _layer_norm_kernel,
            (triton.cdiv(num_rows, block_rows),),
            hidden,
            weight,
            weight if bias is None else bias,
            out,
            num_rows,
            per_group,
            hidden.shape[-1],
            *strides,
            eps,
            HAS_BIAS=bias is not None,
            BLOCK_ROWS=block_rows,
            BLOCK_SIZE=block_size,
            num_warps=num_warps,
        )
    return out
