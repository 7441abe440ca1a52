"""Choose the next token of each row: argmax, or temperature → top-k → top-p → min-p → Gumbel
argmax.

Each filter is a threshold on the scores, so tokens that tie with the last kept one are all kept (as
in transformers' top-k) and the result does not depend on how a sort breaks ties. Of equal logits a
greedy row takes the lowest id.

On a GPU no row is sorted: `score_limits` finds the thresholds, then every block of a row offers its
best (score, id) as one 64-bit number, and the highest offer wins. Equal logits, seed and position
give the token that the CPU form chooses, but where two sums of probabilities or two noisy scores
are equal within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from lightllm_kernels.checks import require, require_rows, require_shape
from lightllm_kernels.score_limits import order_key, score_limits, score_limits_reference
from lightllm_kernels.token_noise import gumbel_noise, gumbel_of, noise_keys
from lightllm_kernels.triton_launch import launch, runs_triton

__all__ = ["RandomRows", "make_random_rows", "sample_tokens", "sample_tokens_reference"]

# candidates looked at before a whole row is sorted: on the CPU a full sort costs 20 times as much
_FIRST_CANDIDATES = 256
# more than top-k asks for, so that tokens that tie with the last one are seen too
_SPARE_CANDIDATES = 32
# tokens of a row that one program looks at, 16 a thread; random rows that it compares its row with
_BLOCK, _BLOCK_ROWS, _NUM_WARPS = 2048, 128, 4
_LAST_ID = tl.constexpr(2**31 - 1)


@dataclass(frozen=True, slots=True)
class RandomRows:
    """The K rows of a batch that are not greedy; all tensors [K] on the logits' device.

    max_top_k: the largest top-k, or 0 if a row has none. truncates: whether any row has a filter;
    has_top_p: whether any has that one.
    """

    rows: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor
    max_top_k: int
    truncates: bool
    has_top_p: bool


def make_random_rows(
    rows: Sequence[int],
    temperature: Sequence[float],
    top_k: Sequence[int],
    top_p: Sequence[float],
    min_p: Sequence[float],
    seeds: Sequence[int],
    positions: Sequence[int],
    *,
    device: torch.device | str,
) -> RandomRows | None:
    """Gather the non-greedy rows of a step; None if there are none.

    rows: [K] rows of the logits; temperature: [K] > 0; top_k: [K], <= 0 for off; top_p: [K], >= 1
    for off; min_p: [K], 0 for off
    seeds: [K] 64-bit signed, with the choice index folded in; positions: [K] sequence position
    that the token takes
    """
    if not rows:
        return None
    bounded = all(k > 0 for k in top_k)
    return RandomRows(
        rows=torch.tensor(rows, dtype=torch.int64, device=device),
        temperature=torch.tensor(temperature, dtype=torch.float32, device=device),
        top_k=torch.tensor(top_k, dtype=torch.int64, device=device),
        top_p=torch.tensor(top_p, dtype=torch.float32, device=device),
        min_p=torch.tensor(min_p, dtype=torch.float32, device=device),
        seeds=torch.tensor(seeds, dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        max_top_k=max(top_k) if bounded else 0,
        truncates=any(k > 0 for k in top_k)
        or any(p < 1 for p in top_p)
        or any(p > 0 for p in min_p),
        has_top_p=any(p < 1 for p in top_p),
    )


def sample_tokens_reference(logits: torch.Tensor, random_rows: RandomRows | None) -> torch.Tensor:
    """As `sample_tokens`, with whole rows sorted."""
    ids = logits.argmax(-1)
    if random_rows is None:
        return ids
    scores = logits[random_rows.rows] / random_rows.temperature.unsqueeze(1)
    limits = _limits(score_limits_reference, logits, random_rows)
    scores[scores < limits.unsqueeze(1)] = float("-inf")
    token_ids = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    scores += gumbel_noise(random_rows.seeds, random_rows.positions, token_ids)
    ids[random_rows.rows] = scores.argmax(-1)
    return ids


@triton.jit(
    do_not_specialize=["num_random"],
    do_not_specialize_on_alignment=[
        "rows_ptr",
        "temperature_ptr",
        "limits_ptr",
        "seeds_ptr",
        "positions_ptr",
    ],
)
def _offers_kernel(
    logits_ptr,
    offers_ptr,
    rows_ptr,
    temperature_ptr,
    limits_ptr,
    seeds_ptr,
    positions_ptr,
    vocab,
    num_random,
    stride_logits_row,
    stride_offers_row,
    HAS_RANDOM: tl.constexpr,
    HAS_LIMITS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """The best token of one block of a row: the key of its score, then its id, lower ones first."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < vocab
    logit_ptrs = logits_ptr + row * stride_logits_row + offs
    scores = tl.load(logit_ptrs, mask=mask, other=float("-inf"))
    if HAS_RANDOM:
        index = _index_of(rows_ptr, row, num_random, BLOCK_ROWS)
        if index >= 0:
            scores = tl.div_rn(scores, tl.load(temperature_ptr + index) + tl.zeros_like(scores))
            if HAS_LIMITS:
                scores = tl.where(scores >= tl.load(limits_ptr + index), scores, float("-inf"))
            first, second = noise_keys(tl.load(seeds_ptr + index), tl.load(positions_ptr + index))
            scores += gumbel_of(first, second, offs)
    offers = order_key(scores).to(tl.int64) << 32 | (offs ^ _LAST_ID).to(tl.int64)
    best = tl.max(offers, axis=0)
    tl.store(offers_ptr + row * stride_offers_row + tl.program_id(1), best)


@triton.jit
def _index_of(rows_ptr, row, num_rows, BLOCK_ROWS: tl.constexpr):
    """Where `rows` holds `row`, or -1."""
    found = tl.full((BLOCK_ROWS,), -1, tl.int32)
    for start in range(0, num_rows, BLOCK_ROWS):
        offs = start + tl.arange(0, BLOCK_ROWS)
        rows = tl.load(rows_ptr + offs, mask=offs < num_rows, other=-1)
        found = tl.where(rows == row, offs, found)
    return tl.max(found, axis=0)


@triton.jit
def _best_offer_kernel(offers_ptr, ids_ptr, num_blocks, stride_offers_row, BLOCK: tl.constexpr):
    """The id of the highest offer of one row."""
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    # the first block's offer again in the place of those that are missing
    offs = tl.where(offs < num_blocks, offs, 0)
    best = tl.max(tl.load(offers_ptr + row * stride_offers_row + offs), axis=0)
    tl.store(ids_ptr + row, best & _LAST_ID ^ _LAST_ID)


def _limits(
    limits_of: Callable[..., torch.Tensor], logits: torch.Tensor, rows: RandomRows
) -> torch.Tensor:
    return limits_of(
        logits,
        rows.rows,
        temperature=rows.temperature,
        top_k=rows.top_k,
        top_p=rows.top_p,
        min_p=rows.min_p,
    )


def _launch(logits: torch.Tensor, random_rows: RandomRows | None) -> torch.Tensor:
    require_rows("logits", logits)
    require(logits.dtype == torch.float32, f"logits must be float32, got {logits.dtype}")
    num_rows, vocab = logits.shape
    num_blocks = triton.cdiv(vocab, _BLOCK)
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return ids
    offers = torch.empty((num_rows, num_blocks), dtype=torch.int64, device=logits.device)
    # without random rows their arguments are not looked at
    arguments: tuple[torch.Tensor, ...] = (logits,) * 5
    if random_rows is not None:
        r = random_rows
        limits = _limits(score_limits, logits, r) if r.truncates else r.temperature
        arguments = (r.rows, r.temperature, limits, r.seeds, r.positions)
    launch(
        _offers_kernel,
        (num_rows, num_blocks),
        logits,
        offers,
        *arguments,
        vocab,
        0 if random_rows is None else random_rows.rows.shape[0],
        logits.stride(0),
        offers.stride(0),
        HAS_RANDOM=random_rows is not None,
        HAS_LIMITS=random_rows is not None and random_rows.truncates,
        BLOCK=_BLOCK,
        BLOCK_ROWS=_BLOCK_ROWS,
        num_warps=_NUM_WARPS,
    )
    launch(
        _best_offer_kernel,
        (num_rows,),
        offers,
        ids,
        num_blocks,
        offers.stride(0),
        BLOCK=triton.next_power_of_2(num_blocks),
        num_warps=1,
    )
    return ids


def sample_tokens(logits: torch.Tensor, random_rows: RandomRows | None) -> torch.Tensor:
    """Choose one token per row.

    logits: [N, V] float32, not changed
    random_rows: the rows to draw; all others are greedy
    Returns ids [N] int64.
    """
    require_shape("logits", logits, -1, -1)
    if runs_triton(logits):
        return _launch(logits, random_rows)
    ids = logits.argmax(-1)
    if random_rows is None:
        return ids
    scores = logits.index_select(0, random_rows.rows)
    scores.div_(random_rows.temperature.unsqueeze(1))
    token_ids = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    if random_rows.truncates:
        scores, token_ids = _filtered_candidates(scores, random_rows)
    scores.add_(gumbel_noise(random_rows.seeds, random_rows.positions, token_ids))
    drawn = scores.argmax(-1)
    if random_rows.truncates:
        drawn = token_ids.gather(1, drawn.unsqueeze(1)).squeeze(1).long()
    return ids.index_copy_(0, random_rows.rows, drawn)


def _filtered_candidates(
    scores: torch.Tensor, rows: RandomRows
) -> tuple[torch.Tensor, torch.Tensor]:
    """scores: [K, V] -> (scores [K, W] float32, -inf where a filter drops it; ids [K, W] int32).

    The W best of each row are all that its filters can keep.
    """
    vocab = scores.shape[1]
    width = rows.max_top_k + _SPARE_CANDIDATES if rows.max_top_k else _FIRST_CANDIDATES
    while True:
        width = min(width, vocab)
        best, ids = scores.topk(width)
        limits = _thresholds(scores, best, rows)
        if width == vocab or bool((best[:, -1:] < limits).all()):
            return best.masked_fill_(best < limits, float("-inf")), ids.to(torch.int32)
        width *= 16


def _thresholds(scores: torch.Tensor, best: torch.Tensor, rows: RandomRows) -> torch.Tensor:
    """The lowest score that the filters keep, [K, 1]; not above the last of `best` if that is too
    few.

    scores: [K, V]; best: [K, W] its best, descending
    """
    width = best.shape[1]
    top_k, top_p = rows.top_k.unsqueeze(1), rows.top_p.unsqueeze(1)
    limited = (top_k > 0) & (top_k < scores.shape[1])
    limits = best.gather(1, (top_k - 1).clamp_(0, width - 1))
    limits = limits.masked_fill_(~limited, float("-inf"))
    if rows.has_top_p:
        kept = best.masked_fill(best < limits, float("-inf"))
        # top-p looks at what top-k left: candidates, or the whole row
        total = torch.where(limited, kept.logsumexp(1, True), scores.logsumexp(1, True))
        probs = (kept - total).exp_()
        # a token stays while the mass before it is below top_p; the best one always does
        before = probs.cumsum(1).sub_(probs)
        last = (before < top_p).sum(1, keepdim=True).clamp_(min=1) - 1
        limits = torch.where(top_p < 1, torch.maximum(best.gather(1, last), limits), limits)
    # min-p is relative to the best token, which no other filter drops
    return torch.maximum(limits, best[:, :1] + rows.min_p.unsqueeze(1).log())
