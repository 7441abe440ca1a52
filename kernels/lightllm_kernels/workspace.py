"""Scratch memory that outlives a call, so that a step pays no page faults for temporaries."""

from __future__ import annotations

from math import prod

import torch

__all__ = ["Workspace", "with_headroom"]


def with_headroom(size: int) -> int:
    """What a buffer grows to when `size` is asked for: lengths grow by one token per step."""
    return size + size // 8


class Workspace:
    """Named scratch buffers of one device; each grows to the largest size ever asked for and is
    never freed.

    A tensor handed out is uninitialised and valid until the same name is taken again.
    Not for use by two threads at once.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._buffers: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous uninitialised tensor of `shape`, aliasing the buffer `name`."""
        size = prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(with_headroom(size), dtype=dtype, device=self._device)
            self._buffers[(name, dtype)] = buffer
        return buffer[:size].view(shape)

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(b.numel() * b.element_size() for b in self._buffers.values())
