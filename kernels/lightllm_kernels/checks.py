"""Argument checks that every launcher shares: a wrong shape, dtype or device is a `ValueError`
that names it.
"""

from __future__ import annotations

import torch

__all__ = ["require", "require_int", "require_rows", "require_shape"]


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def require_shape(name: str, tensor: torch.Tensor, *dims: int) -> None:
    """Raise unless `tensor` has exactly the shape `dims`; -1 allows any length."""
    shape = tensor.shape
    if len(shape) != len(dims) or any(
        want not in (-1, got) for want, got in zip(dims, shape, strict=True)
    ):
        raise ValueError(f"{name} must have shape {list(dims)}, got {list(shape)}")


def require_rows(name: str, tensor: torch.Tensor) -> None:
    """Raise unless the last dimension is contiguous (other strides are free)."""
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"the last dimension of {name} must have stride 1, got {tensor.stride(-1)}"
        )


def require_int(name: str, tensor: torch.Tensor, *dtypes: torch.dtype) -> None:
    """Raise unless `tensor` is of one of the given integer dtypes."""
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} must be one of {dtypes}, got {tensor.dtype}")
