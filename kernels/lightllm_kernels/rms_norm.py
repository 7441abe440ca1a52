"""RMS norm: y = x / sqrt(mean(x²) + eps) * weight over the last dimension (Zhang and Sennrich,
2019).

Statistics are float32. The weight is applied after the cast back to the input's dtype, as LLaMA's
own code does.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from lightllm_kernels.checks import require_shape

__all__ = ["add_rms_norm", "rms_norm", "rms_norm_reference"]


def rms_norm_reference(hidden: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """hidden: [T, E], weight: [E] -> [T, E] in hidden's dtype; float32 inside."""
    wide = hidden.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(hidden.dtype) * weight.to(hidden.dtype)


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
    residual.add_(hidden)
    return rms_norm(residual, weight, eps)
