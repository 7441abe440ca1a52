"""Gumbel noise from a counter-based hash of (seed, position, token id) and nothing else.

So a sampled token depends on its own logits, seed and position, never on what else is in the
batch, on the device or on the order of the calls. The hash is murmur3's 32-bit finaliser (public
domain, Austin Appleby), applied once per key word.
"""

from __future__ import annotations

import torch

__all__ = ["gumbel_noise", "gumbel_noise_reference"]

_WORD = 0xFFFFFFFF
_FIRST_FACTOR, _SECOND_FACTOR, _ID_FACTOR = 0x85EBCA6B, 0xC2B2AE35, 0x9E3779B1
_LARGEST_BELOW_ONE = 1 - 2**-24


def _mix_int(word: int) -> int:
    word ^= word >> 16
    word = word * _FIRST_FACTOR & _WORD
    word ^= word >> 13
    word = word * _SECOND_FACTOR & _WORD
    return word ^ word >> 16


def gumbel_noise_reference(seed: int, position: int, token_id: int) -> float:
    """The noise of one token in Python integers and double precision."""
    from math import log, log1p

    low, high = seed & _WORD, seed >> 32 & _WORD
    first = _mix_int(low ^ _mix_int(high ^ 0x5BD1E995))
    second = _mix_int(position & _WORD ^ first)
    word = _mix_int(_mix_int(token_id * _ID_FACTOR + first & _WORD) ^ second)
    uniform = min(((word >> 1) + 0.5) * 2**-31, _LARGEST_BELOW_ONE)
    return -log(-log1p(-uniform))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _mix_(words: torch.Tensor) -> torch.Tensor:
    """murmur3's finaliser in place on int32, whose products wrap; its shifts are arithmetic, hence
    the masks.
    """
    words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF)).mul_(_signed(_FIRST_FACTOR))
    words.bitwise_xor_((words >> 13).bitwise_and_(0x7FFFF)).mul_(_signed(_SECOND_FACTOR))
    return words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF))


def _keys(seeds: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two int32 key words [K] per row."""
    low, high = seeds.to(torch.int32), (seeds >> 32).to(torch.int32)
    first = _mix_(_mix_(high ^ 0x5BD1E995).bitwise_xor_(low))
    return first, _mix_(positions.to(torch.int32) ^ first)


def gumbel_noise(
    seeds: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """Standard Gumbel noise.

    seeds: [K] int64; positions: [K] int32 or int64; token_ids: [W] or [K, W] int32, below the
    vocabulary's size
    Returns [K, W] float32.
    """
    first, second = _keys(seeds, positions)
    words = _mix_(token_ids * _signed(_ID_FACTOR) + first.unsqueeze(1))
    _mix_(words.bitwise_xor_(second.unsqueeze(1)))
    uniform = (words >> 1).bitwise_and_(0x7FFFFFFF).to(torch.float32)
    # values near 0, which make the large noise that decides, keep their full resolution in float32
    uniform.add_(0.5).mul_(2**-31).clamp_(max=_LARGEST_BELOW_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()
