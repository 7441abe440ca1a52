"""How layers see the tensor-parallel group: their place in it and three collectives."""

from __future__ import annotations

from typing import Protocol

import torch

__all__ = ["SingleRank", "TensorParallel", "divide"]


class TensorParallel(Protocol):
    """A group of `size` ranks of which this process is `rank`."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, tensor: torch.Tensor, /) -> torch.Tensor:
        """The sum over ranks; may write into `tensor`, which the caller then no longer uses."""
        ...

    def all_gather(self, tensor: torch.Tensor, /) -> torch.Tensor:
        """The ranks' tensors side by side along the last dimension, in rank order."""
        ...


class SingleRank:
    """The group of one."""

    rank = 0
    size = 1

    def all_reduce(self, tensor: torch.Tensor, /) -> torch.Tensor:
        """The tensor itself."""
        return tensor

    def all_gather(self, tensor: torch.Tensor, /) -> torch.Tensor:
        """The tensor itself."""
        return tensor


def divide(name: str, total: int, size: int) -> int:
    """total / size; ValueError naming `name` unless it divides evenly."""
    if total % size:
        raise ValueError(f"{name} = {total} cannot be split over {size} tensor-parallel ranks")
    return total // size
