"""Small arrays on their way to the device, without waiting for it.

On CUDA they are packed into pinned memory and copied at once; a buffer is used again when its copy
is done, so that a steady state allocates nothing on the host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["CopyEvent", "PinnedUploader", "PlainUploader", "Uploader", "make_uploader"]

Array = npt.NDArray[Any]

# what any view may want, and more than any dtype's size
_ALIGNMENT = 16
_MIN_BYTES = 1 << 16


class Uploader(Protocol):
    """Copies host arrays to the device in stream order; the arrays must not change afterwards."""

    def upload(self, *arrays: Array) -> list[torch.Tensor]:
        """A new tensor per array, same shape and dtype."""
        ...

    def write(self, destination: torch.Tensor, array: Array) -> None:
        """destination: contiguous, of the array's size in bytes."""
        ...


class PlainUploader:
    """For the CPU: the arrays themselves."""

    def upload(self, *arrays: Array) -> list[torch.Tensor]:
        return [torch.from_numpy(array) for array in arrays]

    def write(self, destination: torch.Tensor, array: Array) -> None:
        destination.copy_(torch.from_numpy(array))


class CopyEvent(Protocol):
    """What is needed of `torch.cuda.Event`."""

    def record(self) -> None: ...

    def query(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Buffer:
    """memory: [n] uint8; array: the same bytes; copied: recorded behind the latest copy."""

    memory: torch.Tensor
    array: Array
    copied: CopyEvent


class PinnedUploader:
    """Takes the buffer whose copy was queued first if that copy is done, else makes another."""

    def __init__(
        self, device: torch.device, *, make_event: Callable[[], CopyEvent], pin: bool = True
    ) -> None:
        self._device = device
        self._make_event = make_event
        self._pin = pin
        self._buffers: deque[_Buffer] = deque()

    @property
    def num_buffers(self) -> int:
        return len(self._buffers)

    def upload(self, *arrays: Array) -> list[torch.Tensor]:
        offsets, num_bytes = _places(arrays)
        buffer = self._take(num_bytes)
        for array, offset in zip(arrays, offsets, strict=True):
            place = buffer.array[offset : offset + array.nbytes]
            place.view(array.dtype)[:] = array.reshape(-1)
        packed = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        self._copy(packed, buffer)
        return [
            packed[offset : offset + array.nbytes].view(_DTYPES[array.dtype.str]).view(array.shape)
            for array, offset in zip(arrays, offsets, strict=True)
        ]

    def write(self, destination: torch.Tensor, array: Array) -> None:
        buffer = self._take(array.nbytes)
        buffer.array[: array.nbytes].view(array.dtype)[:] = array.reshape(-1)
        self._copy(destination.view(-1).view(torch.uint8), buffer)

    def _copy(self, destination: torch.Tensor, buffer: _Buffer) -> None:
        """destination: [n] uint8 of the buffer's first n bytes."""
        destination.copy_(buffer.memory[: len(destination)], non_blocking=True)
        buffer.copied.record()
        self._buffers.append(buffer)

    def _take(self, num_bytes: int) -> _Buffer:
        if self._buffers and self._buffers[0].copied.query():
            buffer = self._buffers.popleft()
            if len(buffer.array) >= num_bytes:
                return buffer
        size = max(_MIN_BYTES, 1 << (num_bytes - 1).bit_length())
        memory = torch.empty(size, dtype=torch.uint8, pin_memory=self._pin)
        return _Buffer(memory, memory.numpy(), self._make_event())


_DTYPES = {
    np.dtype(dtype).str: getattr(torch, dtype) for dtype in ("int32", "int64", "float32", "bool")
}


def _places(arrays: Sequence[Array]) -> tuple[list[int], int]:
    """Where each array begins, and the bytes of all."""
    offsets, end = [], 0
    for array in arrays:
        offsets.append(end)
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def make_uploader(device: torch.device) -> Uploader:
    if device.type == "cuda":
        return PinnedUploader(device, make_event=torch.cuda.Event)
    return PlainUploader()
