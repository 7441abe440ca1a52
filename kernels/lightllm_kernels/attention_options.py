"""What some model families add to causal attention: ALiBi, a sliding window, soft-capped scores.

A score s = scale · q·k of a query at position i and a key at position j becomes, in this order,
cap · tanh(s / cap), then s - slope · (i - j), then -inf unless 0 ≤ i - j < window.
Sources: ALiBi (Press et al., 2022), Mistral 7B (2023), Gemma 2 (2024).
Here also the same in Triton, as both attention kernels use it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lightllm_kernels.checks import require, require_shape

__all__ = ["INT8_P_SCALE", "LOG2_E", "PLAIN", "AttentionOptions", "adjust", "adjust_in_base_2"]

LOG2_E = tl.constexpr(1.4426950408889634)
# over an int8 pool a probability is multiplied by its value's scale before it is rounded to 16
# bits; a scale is a 127th of a value, so this keeps the product as far from float16's smallest
# numbers as an unquantised pool would
INT8_P_SCALE = tl.constexpr(64.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionOptions:
    """alibi_slopes: [H] float32 on the query's device; window: how many tokens a query sees, itself
    included; soft_cap: the bound of a score's size. None leaves it out.

    The last two are compile-time constants of the kernels.
    """

    alibi_slopes: torch.Tensor | None = None
    window: int | None = None
    soft_cap: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether this is causal attention and nothing else."""
        return self.alibi_slopes is None and self.window is None and self.soft_cap is None

    def check(self, heads: int) -> None:
        """Raise ValueError on options that do not fit a query of so many heads."""
        if self.alibi_slopes is not None:
            require_shape("alibi_slopes", self.alibi_slopes, heads)
            dtype = self.alibi_slopes.dtype
            require(dtype == torch.float32, f"alibi_slopes must be float32, got {dtype}")
        require(self.window is None or self.window > 0, f"window must be >= 1, got {self.window}")
        require(
            self.soft_cap is None or self.soft_cap > 0, f"soft_cap must be > 0, got {self.soft_cap}"
        )


# causal attention
PLAIN = AttentionOptions()


def adjust(
    scores: torch.Tensor,
    distance: torch.Tensor,
    slopes: torch.Tensor | None,
    options: AttentionOptions,
) -> torch.Tensor:
    """Apply the options and the causal mask to scaled scores.

    scores: [..., K] float32; distance: query's position minus key's; slopes: of the scores' heads;
    both broadcast to the scores.
    """
    if options.soft_cap is not None:
        scores = (scores / options.soft_cap).tanh() * options.soft_cap
    if slopes is not None:
        scores = scores - slopes * distance
    hidden = distance < 0
    if options.window is not None:
        hidden = hidden | (distance >= options.window)
    return scores.masked_fill(hidden, float("-inf"))


@triton.jit
def adjust_in_base_2(scores, distance, slopes, SOFT_CAP: tl.constexpr):
    """scores: [M, N] scaled float32; distance: [M, N] or [1, N]; slopes: [M] or None; SOFT_CAP: 0
    for none -> [M, N], to be used with exp2. The masks are the caller's.
    """
    if SOFT_CAP > 0:
        # tanh(x) = 2 · sigmoid(2x) - 1, which never overflows: the interpreter has no tanh
        scores = (2 * tl.sigmoid(scores * (2 / SOFT_CAP)) - 1) * SOFT_CAP
    if slopes is not None:
        scores -= slopes[:, None] * distance.to(tl.float32)
    return scores * LOG2_E
