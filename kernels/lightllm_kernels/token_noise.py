"""Gumbel noise from a counter-based hash of (seed, position, token id) and nothing else.

So a sampled token depends on its own logits, seed and position, never on what else is in the
batch, on the device or on the order of the calls. The hash is murmur3's 32-bit finaliser (public
domain, Austin Appleby), applied once per key word.

The uniform numbers are the same bits everywhere. The noise, two logarithms of one, differs by a
few units in the last place between a vectorised CPU, CUDA and Triton, as their logarithms do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm_kernels.checks import require_int, require_shape
from lightllm_kernels.triton_launch import launch, runs_triton

__all__ = ["gumbel_noise", "gumbel_noise_reference", "gumbel_of", "noise_keys"]

_WORD = 0xFFFFFFFF
_FIRST_FACTOR, _SECOND_FACTOR, _ID_FACTOR = 0x85EBCA6B, 0xC2B2AE35, 0x9E3779B1
_LARGEST_BELOW_ONE = 1 - 2**-24
_BLOCK, _NUM_WARPS = 1024, 4


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


@triton.jit
def _mix(words):
    """murmur3's finaliser of uint32."""
    words = (words ^ (words >> 16)) * tl.full((), 0x85EBCA6B, tl.uint32)
    words = (words ^ (words >> 13)) * tl.full((), 0xC2B2AE35, tl.uint32)
    return words ^ (words >> 16)


@triton.jit
def noise_keys(seeds, positions):
    """Two uint32 key words; seeds, positions: integers of any shape, negative ones too."""
    low, high = seeds.to(tl.uint32), (seeds.to(tl.int64) >> 32).to(tl.uint32)
    first = _mix(low ^ _mix(high ^ tl.full((), 0x5BD1E995, tl.uint32)))
    return first, _mix(positions.to(tl.uint32) ^ first)


@triton.jit
def gumbel_of(first, second, token_ids):
    """Standard Gumbel noise, float32, of tokens of a row with the keys `first`, `second`."""
    words = _mix(token_ids.to(tl.uint32) * tl.full((), 0x9E3779B1, tl.uint32) + first)
    words = _mix(words ^ second)
    uniform = ((words >> 1).to(tl.float32) + 0.5) * (2.0**-31)
    uniform = tl.minimum(uniform, 1 - 2.0**-24)
    # log1p(-u) as log(w) u / (1 - w) with w = 1 - u rounded, whose error cancels (Goldberg, 1991)
    rest = 1.0 - uniform
    lost = 1.0 - rest
    scale = tl.where(lost == 0.0, 1.0, uniform / tl.where(lost == 0.0, 1.0, lost))
    exponential = tl.where(lost == 0.0, uniform, -tl.log(rest) * scale)
    return -tl.log(exponential)


@triton.jit(do_not_specialize_on_alignment=["seeds_ptr", "positions_ptr"])
def _gumbel_noise_kernel(
    seeds_ptr,
    positions_ptr,
    token_ids_ptr,
    out_ptr,
    width,
    stride_token_ids_row,
    stride_token_ids,
    stride_out_row,
    BLOCK: tl.constexpr,
):
    """One block of one row."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < width
    first, second = noise_keys(tl.load(seeds_ptr + row), tl.load(positions_ptr + row))
    offs_ids = row * stride_token_ids_row + offs * stride_token_ids
    token_ids = tl.load(token_ids_ptr + offs_ids, mask=mask, other=0)
    noise = gumbel_of(first, second, token_ids)
    tl.store(out_ptr + row * stride_out_row + offs, noise, mask=mask)


def _launch(seeds: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    require_int("token_ids", token_ids, torch.int32, torch.int64)
    require_shape("positions", positions, seeds.shape[0])
    rows, width = seeds.shape[0], token_ids.shape[-1]
    token_ids = token_ids.expand(rows, width)
    out = torch.empty((rows, width), dtype=torch.float32, device=seeds.device)
    if rows and width:
        launch(
            _gumbel_noise_kernel,
            (rows, triton.cdiv(width, _BLOCK)),
            seeds.contiguous(),
            positions.contiguous(),
            token_ids,
            out,
            width,
            token_ids.stride(0),
            token_ids.stride(1),
            out.stride(0),
            BLOCK=_BLOCK,
            num_warps=_NUM_WARPS,
        )
    return out


def gumbel_noise(
    seeds: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor
) -> torch.Tensor:
    """Standard Gumbel noise.

    seeds: [K] int64; positions: [K] int32 or int64; token_ids: [W] or [K, W] int32, below the
    vocabulary's size
    Returns [K, W] float32.
    """
    if runs_triton(seeds):
        return _launch(seeds, positions, token_ids)
    first, second = _keys(seeds, positions)
    words = _mix_(token_ids * _signed(_ID_FACTOR) + first.unsqueeze(1))
    _mix_(words.bitwise_xor_(second.unsqueeze(1)))
    uniform = (words >> 1).bitwise_and_(0x7FFFFFFF).to(torch.float32)
    # values near 0, which make the large noise that decides, keep their full resolution in float32
    uniform.add_(0.5).mul_(2**-31).clamp_(max=_LARGEST_BELOW_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()
