"""Read pool slots into a dense float workspace, dequantising an int8 pool on the way: the CPU form
of paged reads.
"""

from __future__ import annotations

import torch

from lightllm_kernels.workspace import Workspace

__all__ = ["gather_kv"]


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
