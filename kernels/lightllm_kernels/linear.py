"""Matrix products with weights prepared once at load: y = x Wᵀ + b.

CUDA: torch's own (cuBLAS). CPU: oneDNN with the weight reordered into its blocked layout (float32,
bfloat16), or int8.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from lightllm_kernels.checks import require_shape

__all__ = ["Linear", "pack_linear"]


class Linear(Protocol):
    """hidden: [T, in] -> [T, out], a new tensor of the same dtype."""

    def __call__(self, hidden: torch.Tensor, /) -> torch.Tensor: ...


class PlainLinear:
    """The weight as it is."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, hidden: torch.Tensor, /) -> torch.Tensor:
        return functional.linear(hidden, self._weight, self._bias)


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None, *, int8: bool = False) -> Linear:
    """Prepare a weight for the device it is on.

    weight: [out, in]; bias: [out] or None, same dtype
    int8: quantise the weight per output channel and, at run time, the activations per token (CPU
    only)
    Keeps the weight or a packed copy; the caller drops its own reference, so that a packed weight
    frees the original.
    """
    require_shape("weight", weight, -1, -1)
    if bias is not None:
        require_shape("bias", bias, weight.shape[0])
    return PlainLinear(weight, bias)
