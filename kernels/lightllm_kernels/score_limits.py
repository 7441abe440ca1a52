"""The lowest score that top-k, top-p and min-p keep in each row; on a GPU found without sorting.

Floats are searched through order keys: int32 that are ordered as the floats are. Both filters ask
for the largest key x with F(x) >= target, where F(x) is the number, or the probability mass, of
the tokens whose key is at least x. (Top-p keeps a token while the mass before it is below p; so
the last kept value is the largest x with mass(x) >= p, since the mass above it is below p.) F never
grows with x, also as computed: all sums over a row have one order, and rounding is monotonic.

One program per row narrows [lo, hi), which holds the answer, to a single present key. A pass over
the row takes F at 8 points and the lowest and highest key present in [lo, hi), to which the
interval shrinks too. The first points lie at growing distances below the maximum, the others are
equally spaced keys; so there are at most 12 passes, commonly 5 to 7.

The search is over logits, not scores: dividing by a temperature keeps the order, so the quotient of
the k-th logit is the k-th score, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm_kernels.checks import require, require_rows, require_shape
from lightllm_kernels.triton_launch import launch, runs_triton

__all__ = ["order_key", "score_limits", "score_limits_reference"]

_POINTS = 8
# registers hold a tile of the points × the block: 4 elements a thread; with 8 sm_80 spills
_BLOCK, _NUM_WARPS = 2048, 16
_LOWEST_KEY = tl.constexpr(-(2**31))
_HIGHEST_KEY = tl.constexpr(2**31 - 1)


def score_limits_reference(
    logits: torch.Tensor,
    rows: torch.Tensor,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> torch.Tensor:
    """As `score_limits`, by sorting one row at a time; the mass is summed in double precision."""
    limits = torch.full(rows.shape, float("-inf"), device=logits.device)
    for index, row in enumerate(rows.tolist()):
        kept = (logits[row] / temperature[index]).sort(descending=True).values
        limit, k, p = limits[index], int(top_k[index]), float(top_p[index])
        best = kept[0]
        if 0 < k < len(kept):
            limit = kept[k - 1]
            kept = kept[kept >= limit]
        if p < 1:
            mass = kept.double().softmax(-1).cumsum(0)
            limit = kept[min(int((mass < p).sum()), len(kept) - 1)]
        limits[index] = torch.maximum(limit, best + min_p[index].log())
    return limits


@triton.jit
def order_key(values):
    """float32 -> int32 in the same order; -0 is 0; NaN is the highest, as in torch's argmax."""
    bits = values.to(tl.int32, bitcast=True)
    keys = tl.where(values == 0.0, 0, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return tl.where(values == values, keys, _HIGHEST_KEY)


@triton.jit
def _value_of(key):
    bits = key ^ ((key >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _largest(row_ptr, vocab, BLOCK: tl.constexpr):
    """The highest logit of the row, as its key."""
    highest = tl.full((BLOCK,), _LOWEST_KEY, tl.int32)
    for start in range(0, vocab, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        logits = tl.load(row_ptr + offs, mask=offs < vocab, other=float("-inf"))
        highest = tl.maximum(highest, order_key(logits))
    return tl.max(highest, axis=0)


@triton.jit
def _search(
    row_ptr,
    vocab,
    best,
    scale,
    lowest,
    target,
    BY_MASS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The key of the last logit that stays: of the `target` highest, or if BY_MASS of those that
    hold the part `target` of the mass of the logits with a key of `lowest` or more.

    best: the highest logit; scale: 1 / temperature
    """
    index = tl.arange(0, POINTS)
    lo = lowest.to(tl.int64)
    hi = order_key(best).to(tl.int64) + 1
    # point 0 is lo itself: its F is the whole
    below = _points_below(best, scale, index, POINTS)
    points = tl.where(index == 0, lo, tl.minimum(tl.maximum(below, lo), hi - 1))
    # of the mass only the part is known before the first pass
    wanted = tl.full((), -1.0, tl.float32) if BY_MASS else target
    while hi - lo > 1:
        keys_at = points.to(tl.int32)
        reached = tl.zeros((POINTS,), tl.float32)
        lowest_present = tl.full((BLOCK,), _HIGHEST_KEY, tl.int32)
        highest_present = tl.full((BLOCK,), _LOWEST_KEY, tl.int32)
        for start in range(0, vocab, BLOCK):
            offs = start + tl.arange(0, BLOCK)
            mask = offs < vocab
            logits = tl.load(row_ptr + offs, mask=mask, other=float("-inf"))
            keys = order_key(logits)
            inside = mask & (keys >= lo.to(tl.int32)) & (keys <= (hi - 1).to(tl.int32))
            lowest_present = tl.where(inside, tl.minimum(lowest_present, keys), lowest_present)
            highest_present = tl.where(inside, tl.maximum(highest_present, keys), highest_present)
            if BY_MASS:
                weights = tl.exp((logits - best) * scale)
            else:
                weights = tl.where(mask, 1.0, 0.0)
            counted = keys[None, :] >= keys_at[:, None]
            reached += tl.sum(tl.where(counted, weights[None, :], 0.0), axis=1)
        if BY_MASS:
            wanted = tl.where(wanted < 0, target * tl.max(reached, axis=0), wanted)
        enough = (reached >= wanted) | (index == 0)
        lo_next = tl.max(tl.where(enough, points, lo), axis=0)
        hi_next = tl.min(tl.where(enough, hi, points), axis=0)
        lo = tl.maximum(lo_next, tl.min(lowest_present, axis=0).to(tl.int64))
        hi = tl.minimum(hi_next, tl.max(highest_present, axis=0).to(tl.int64) + 1)
        hi = tl.maximum(hi, lo + 1)
        points = lo + (hi - lo) * index // POINTS
    return lo.to(tl.int32)


@triton.jit
def _points_below(best, scale, index, POINTS: tl.constexpr):
    """Keys of best - 32, best - 16 … best - 1/2 (in scores), ascending; index: [POINTS]."""
    distance = tl.exp2((POINTS - 1 - index).to(tl.float32)) * 0.5
    return order_key(best - distance / scale).to(tl.int64)


@triton.jit(
    do_not_specialize_on_alignment=[
        "rows_ptr",
        "temperature_ptr",
        "top_k_ptr",
        "top_p_ptr",
        "min_p_ptr",
    ]
)
def _score_limits_kernel(
    logits_ptr,
    rows_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    out_ptr,
    vocab,
    stride_logits_row,
    POINTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row."""
    index = tl.program_id(0)
    row_ptr = logits_ptr + tl.load(rows_ptr + index).to(tl.int64) * stride_logits_row
    temperature = tl.load(temperature_ptr + index)
    top_k, top_p = tl.load(top_k_ptr + index), tl.load(top_p_ptr + index)
    best = _value_of(_largest(row_ptr, vocab, BLOCK))
    scale = 1.0 / temperature
    key = tl.full((), _LOWEST_KEY, tl.int32)
    if (top_k > 0) & (top_k < vocab):
        target = top_k.to(tl.float32)
        key = _search(row_ptr, vocab, best, scale, key, target, False, POINTS, BLOCK)
    if top_p < 1:
        key = _search(row_ptr, vocab, best, scale, key, top_p, True, POINTS, BLOCK)
    # the lowest key stands for no limit: as a float it would be a NaN
    limit = tl.where(key == _LOWEST_KEY, float("-inf"), tl.div_rn(_value_of(key), temperature))
    min_p = tl.load(min_p_ptr + index)
    if min_p > 0:
        limit = tl.maximum(limit, tl.div_rn(best, temperature) + tl.log(min_p))
    tl.store(out_ptr + index, limit)


def score_limits(
    logits: torch.Tensor,
    rows: torch.Tensor,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
) -> torch.Tensor:
    """The lowest score, logit / temperature, that each row's filters keep; -inf without a limit.

    logits: [N, V] float32; rows: [K] int64; temperature, top_p, min_p: [K] float32, top_k: [K]
    int64, as in `RandomRows`
    Returns [K] float32.
    """
    require(logits.dtype == torch.float32, f"logits must be float32, got {logits.dtype}")
    columns = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    for name, column in {"rows": rows, **columns}.items():
        require_shape(name, column, rows.shape[0])
        require_rows(name, column)
    if not runs_triton(logits):
        return score_limits_reference(logits, rows, **columns)
    require_rows("logits", logits)
    limits = torch.empty(rows.shape[0], dtype=torch.float32, device=logits.device)
    launch(
        _score_limits_kernel,
        (rows.shape[0],),
        logits,
        rows,
        temperature,
        top_k,
        top_p,
        min_p,
        limits,
        logits.shape[1],
        logits.stride(0),
        POINTS=_POINTS,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
    return limits
