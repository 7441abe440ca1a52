"""Where a checkpoint's tensors go: what can be read, and who reads which slice of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

__all__ = ["Loader", "WeightOptions", "WeightSource", "load_slice"]


class WeightSource(Protocol):
    """A checkpoint tensor that can be read in slices, such as safetensors' `get_slice`."""

    def get_shape(self) -> Sequence[int]: ...

    def __getitem__(self, index: tuple[slice, ...], /) -> torch.Tensor: ...


# reads this rank's share of one checkpoint tensor; ValueError if that has another shape
Loader: TypeAlias = Callable[[WeightSource], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOptions:
    """How weights are kept. int8: linear weights are quantised once they are loaded."""

    dtype: torch.dtype
    device: torch.device
    int8: bool = False


def load_slice(
    destination: torch.Tensor,
    source: WeightSource,
    full_shape: tuple[int, ...],
    index: tuple[slice, ...],
) -> None:
    """Copy `source[index]` into `destination`, converting its dtype.

    full_shape: what the whole checkpoint tensor must measure; ValueError otherwise.
    """
    if (found := tuple(source.get_shape())) != full_shape:
        raise ValueError(f"has shape {list(found)}, expected {list(full_shape)}")
    destination.copy_(source[index])
