"""Read pool slots into a dense float workspace, dequantising an int8 pool on the way: the CPU form
of paged reads.
"""

from __future__ import annotations

import torch

from lightllm_kernels.workspace import Workspace, with_headroom

__all__ = ["gather_kv", "gathered_bytes_per_token"]


def gather_kv(
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    slots: torch.Tensor,
    workspace: Workspace,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Copy slots out of the pool.

    kv: [S+1, 2G, D]; kv_scales: [S+1, 2G] float16 or None; slots: [K] int64
    Returns [K, 2G, D] in `dtype`, which aliases `workspace` until its next use.
    """
    shape = (slots.shape[0], kv.shape[1], kv.shape[2])
    gathered = workspace.take("gathered_kv", shape, kv.dtype)
    # into a kept buffer: fresh pages for every layer cost more than the copy itself
    torch.index_select(kv, 0, slots, out=gathered)
    if kv.dtype == dtype:
        return gathered
    # a product of mixed types would convert into a fresh temporary: 6 times as slow
    states = workspace.take("converted_kv", shape, dtype).copy_(gathered)
    if kv_scales is not None:
        states.mul_(kv_scales.index_select(0, slots).to(dtype).unsqueeze(-1))
    return states


def gathered_bytes_per_token(
    groups: int, dim: int, kv_dtype: torch.dtype, dtype: torch.dtype
) -> int:
    """Bytes that `gather_kv` takes for each slot it reads, in the workspace and beside it.

    groups: G, dim: D, kv_dtype: of the pool, dtype: of the result
    """
    size = with_headroom(2 * groups * dim * kv_dtype.itemsize)
    if kv_dtype != dtype:
        size += with_headroom(2 * groups * dim * dtype.itemsize)
    if kv_dtype == torch.int8:
        # the scales, as stored and as multiplied
        size += 2 * groups * (torch.float16.itemsize + dtype.itemsize)
    return size
