"""RMS norm with its weight."""

from __future__ import annotations

import torch

from lightllm_kernels.rms_norm import add_rms_norm, rms_norm
from lightllm_server.layers.parameter import Loader, WeightOptions, WeightSource, load_slice

__all__ = ["RMSNorm"]


class RMSNorm:
    """Norm of rows of `size`; the same on every rank."""

    def __init__(self, size: int, eps: float, *, name: str, options: WeightOptions) -> None:
        self._weight = torch.empty(size, dtype=options.dtype, device=options.device)
        self._eps, self._name = eps, name

    def loaders(self) -> dict[str, Loader]:
        """Checkpoint name -> loader."""
        return {f"{self._name}.weight": self._load}

    def _load(self, source: WeightSource) -> None:
        shape = (self._weight.shape[0],)
        load_slice(self._weight, source, shape, (slice(0, shape[0]),))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [T, E] -> its norm [T, E], a new tensor."""
        return rms_norm(hidden, self._weight, self._eps)

    def add(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual += hidden, in place; returns the norm of the sum [T, E]."""
        return add_rms_norm(hidden, residual, self._weight, self._eps)
