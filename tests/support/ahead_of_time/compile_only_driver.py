"""A Triton driver without a device: launches inside `triton_launch.compile_only` compile for the
chosen GPU on any machine, with the alignment and divisibility that a real launch would see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.driver import driver

__all__ = ["activate"]

_WARP_SIZE = 32


class CompileOnlyDriver(DriverBase):
    """Stands for one GPU of compute capability `sm` (80 for 8.0)."""

    def __init__(self, sm: int) -> None:
        self.utils = None
        self._sm = sm

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._sm, _WARP_SIZE)

    def get_current_device(self) -> int:
        # Triton keeps a function's compiled kernels per device: so each target is one
        return self._sm

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self) -> Callable[..., Any]:
        raise RuntimeError("nothing runs here, so nothing can be tuned")


def activate(sm: int) -> None:
    """Compile for `sm` from now on, in this process."""
    driver.set_active(CompileOnlyDriver(sm))
