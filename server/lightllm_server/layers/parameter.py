"""Where a checkpoint's tensors go: what can be read, and who reads which slice of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from lightllm_kernels.linear import WeightFormat

__all__ = ["Loader", "WeightOptions", "WeightSource", "load_slice"]


class WeightSource(Protocol):
    """A checkpoint tensor that can be read in slices, such as safetensors' `get_slice`."""

    def get_shape(self) -> Sequence[int]: ...

    def __getitem__(self, index: tuple[slice, ...], /) -> torch.Tensor: ...


# reads this rank's share of one checkpoint tensor; ValueError if that has another shape
Loader: TypeAlias = Callable[[WeightSource], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOptions:
    """How weights are kept. dtype: of activations, norms and embeddings.

    int8: linear weights are quantised once they are loaded. float16: they are kept in float16
    whatever `dtype` is (CPU; arithmetic stays float32).
    """

    dtype: torch.dtype
    device: torch.device
    int8: bool = False
    float16: bool = False

    @property
    def linear_format(self) -> WeightFormat:
        """What `pack_linear` is asked for."""
        if self.int8:
            return "int8"
        return "float16" if self.float16 else "model"


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
