"""Rotary position embedding: frequency tables of the supported scalings.

default: RoFormer, 2021. linear: positions divided by `factor` (Chen et al., 2023). llama3:
frequencies below `low_freq_factor` turns within the original length are divided by `factor`, those
above `high_freq_factor` kept, those between interpolated (Llama 3.1). dynamic: plain rope, since
it is served up to its original length only, where they are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Literal

import torch

from lightllm_kernels.rotary_embedding import rotary_embedding

__all__ = ["RopeScaling", "RotaryEmbedding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How the frequencies differ from plain rope; lengths in tokens."""

    kind: Literal["default", "linear", "llama3", "dynamic"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0


def _frequencies(rotary_dim: int, theta: float, scaling: RopeScaling) -> torch.Tensor:
    """Radians per position of each pair, [W/2] float32."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    plain = 1.0 / theta**exponents
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_max_position * plain / (2 * pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        return (1 - kept) * plain / scaling.factor + kept * plain
    return plain


class RotaryEmbedding:
    """Tables for positions 0 … max_length-1, shared by all layers."""

    def __init__(
        self,
        *,
        rotary_dim: int,
        theta: float,
        max_length: int,
        scaling: RopeScaling,
        device: torch.device,
    ) -> None:
        positions = torch.arange(max_length, dtype=torch.float32)
        angles = torch.outer(positions, _frequencies(rotary_dim, theta, scaling))
        self._cos, self._sin = angles.cos().to(device), angles.sin().to(device)

    def __call__(self, heads: torch.Tensor, positions: torch.Tensor) -> None:
        """Rotate in place. heads: [T, N, D], query and key heads side by side; positions: [T]."""
        rotary_embedding(heads, None, self._cos, self._sin, positions)
