"""Shapes of real models as one GPU sees them, and tensors of them that take no memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["MODELS", "NAMES", "ModelShape", "empty"]

NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int8: "int8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """heads, kv_heads, inner: of one GPU."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    vocab: int


MODELS = (
    ModelShape(
        name="llama-7b",
        heads=32,
        kv_heads=32,
        head_dim=128,
        hidden=4096,
        inner=11008,
        vocab=32000,
    ),
    ModelShape(
        name="llama-3-8b",
        heads=32,
        kv_heads=8,
        head_dim=128,
        hidden=4096,
        inner=14336,
        vocab=128256,
    ),
    ModelShape(
        name="llama-3-70b tp8",
        heads=8,
        kv_heads=1,
        head_dim=128,
        hidden=8192,
        inner=3584,
        vocab=128256,
    ),
)


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor with shape, strides and dtype but no memory."""
    return torch.empty(shape, dtype=dtype, device="meta")
