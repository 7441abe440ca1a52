"""Random weights made on the device, to measure speed at the shapes of a model without its
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from lightllm_server.layers.parameter import Loader

__all__ = ["load_dummy_weights"]

_SEED = 0
# what LLaMA's weights start from; activations stay finite in float16
_STD = 0.02


@dataclass(frozen=True, slots=True)
class _RandomTensor:
    """A checkpoint tensor whose every slice is drawn when it is read: matrices of small normal
    values, norms of ones.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator

    def get_shape(self) -> Sequence[int]:
        return self.shape

    def __getitem__(self, index: tuple[slice, ...], /) -> torch.Tensor:
        shape = [
            len(range(*part.indices(size))) for part, size in zip(index, self.shape, strict=True)
        ]
        values = torch.ones(shape, dtype=self.dtype, device=self.device)
        return values if len(shape) == 1 else values.normal_(0, _STD, generator=self.generator)


def load_dummy_weights(
    loaders: Mapping[str, Loader],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float], None],
) -> int:
    """Give every loader a random tensor of its shape; the same for every call on one device.

    progress: called with the share loaded so far, 0 to 1. Returns the bytes of all in `dtype`.
    """
    generator = torch.Generator(device).manual_seed(_SEED)
    total, done = sum(map(prod, shapes.values())), 0
    for name, shape in shapes.items():
        loaders[name](_RandomTensor(shape, dtype, device, generator))
        done += prod(shape)
        progress(done / total)
    return total * dtype.itemsize
