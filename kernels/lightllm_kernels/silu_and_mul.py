"""SwiGLU's gate: y = silu(gate) * up, where gate and up are the halves of one row (Shazeer,
2020).
"""

from __future__ import annotations

import torch

from lightllm_kernels.checks import require, require_rows, require_shape

__all__ = ["silu_and_mul", "silu_and_mul_reference"]


def silu_and_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """gate_up: [T, 2I] -> [T, I] in the same dtype; float32 inside."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def silu_and_mul(gate_up: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """silu(first half) * second half of each row.

    gate_up: [T, 2I] float32, bfloat16 or float16
    Writes into `out` [T, I] if given and returns it.
    """
    require_rows("gate_up", gate_up)
    require(gate_up.shape[-1] % 2 == 0, f"gate_up's width must be even, got {gate_up.shape[-1]}")
    inner = gate_up.shape[-1] // 2
    if out is None:
        out = torch.empty((*gate_up.shape[:-1], inner), dtype=gate_up.dtype, device=gate_up.device)
    else:
        require_shape("out", out, *gate_up.shape[:-1], inner)
    torch.ops.aten.silu.out(gate_up[..., :inner], out=out)
    return out.mul_(gate_up[..., inner:])
