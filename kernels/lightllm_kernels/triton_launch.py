"""Where an op runs, and how its Triton kernel is started.

Every launcher asks `runs_triton` and starts its kernel by `launch`; so tests can run all of them
in Triton's interpreter, and a machine without a GPU can compile them ahead of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["compile_only", "launch", "runs_triton", "triton_everywhere"]

# whether tensors that are not on a GPU go to the Triton kernels too
_everywhere = False
# takes each compiled kernel instead of running it
_compiled: Callable[[Any], None] | None = None


def runs_triton(tensor: torch.Tensor) -> bool:
    """Whether the op's Triton kernel is to be used for this argument, else the torch form."""
    return tensor.is_cuda or _everywhere


def launch(
    kernel: Any, grid: tuple[int, ...] | Callable[..., tuple[int, ...]], *args: Any, **options: Any
) -> None:
    """`kernel[grid](*args, **options)`; options: constexprs, num_warps, num_stages."""
    if _compiled is None:
        kernel[grid](*args, **options)
    else:
        _compiled(kernel.warmup(*args, grid=grid, **options))


@contextmanager
def triton_everywhere() -> Iterator[None]:
    """Within it tensors on the CPU go to the Triton kernels: for Triton's interpreter."""
    global _everywhere
    before, _everywhere = _everywhere, True
    try:
        yield
    finally:
        _everywhere = before


@contextmanager
def compile_only(record: Callable[[Any], None]) -> Iterator[None]:
    """Within it nothing runs: each launch compiles for the active Triton driver's target and hands
    the compiled kernel to `record`. Outputs stay as they were.
    """
    global _compiled
    before, _compiled = _compiled, record
    try:
        with triton_everywhere():
            yield
    finally:
        _compiled = before
