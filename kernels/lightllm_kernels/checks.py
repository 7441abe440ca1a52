"""Argument checks that every launcher shares: a wrong shape, dtype or device is a `ValueError`
that names it.
"""

from __future__ import annotations

import torch

__all__ = ["require", "require_int", "require_pool", "require_rows", "require_shape"]


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


def require_pool(query: torch.Tensor, kv: torch.Tensor, kv_scales: torch.Tensor | None) -> None:
    """Raise unless the attention kernels can read this KV pool for this query.

    query: [T, H, D]; kv: [S+1, 2G, D]; kv_scales: [S+1, 2G] float16, given if the pool is int8
    """
    require(kv.shape[2] <= 256, f"head_dim must be at most 256, got {kv.shape[2]}")
    require_rows("kv", kv)
    if kv_scales is None:
        require(kv.dtype == query.dtype, f"kv is {kv.dtype} but query is {query.dtype}")
        return
    require(kv.dtype == torch.int8, f"kv must be int8 where scales are given, got {kv.dtype}")
    require_shape("kv_scales", kv_scales, kv.shape[0], kv.shape[1])
    require_rows("kv_scales", kv_scales)
