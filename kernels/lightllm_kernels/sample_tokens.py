"""Choose the next token of each row: argmax, or temperature → top-k → top-p → min-p → Gumbel
argmax.

Filters work by thresholds on the logits, so tokens that tie with the last kept one are all kept
(as in transformers' top-k) and the result does not depend on how a sort breaks ties. Between equal
scores the lowest id wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightllm_kernels.checks import require_shape
from lightllm_kernels.token_noise import gumbel_noise

__all__ = ["RandomRows", "keep_thresholds", "make_random_rows", "sample_tokens"]

# candidates looked at before a whole row is sorted; on the CPU a sort of 32000 costs 20 times a
# top-k of 256
_FIRST_CANDIDATES = 256


@dataclass(frozen=True, slots=True)
class RandomRows:
    """The K rows of a batch that are not greedy; all tensors [K] on the logits' device.

    max_top_k: the largest top-k, or 0 if a row has none. truncates, has_min_p: whether any row
    filters.
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
    has_min_p: bool


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
        truncates=any(k > 0 for k in top_k) or any(p < 1 for p in top_p),
        has_min_p=any(p > 0 for p in min_p),
    )


def keep_thresholds(
    scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, *, max_top_k: int
) -> torch.Tensor:
    """The lowest score that top-k, then top-p over what is left, keep.

    scores: [K, V] float32 logits after temperature; top_k: [K] int64, <= 0 for off; top_p: [K]
    float32
    max_top_k: the largest top-k if every row has one, else 0
    Returns [K, 1] float32.
    """
    vocab = scores.shape[1]
    width = min(max_top_k or _FIRST_CANDIDATES, vocab)
    if scores.is_cuda and not max_top_k:
        width = vocab  # a look at the candidates would wait for the device; its sort is cheap
    while True:
        limits, settled = _candidate_thresholds(scores, top_k, top_p, scores.topk(width).values)
        if width == vocab or scores.is_cuda or bool(settled.all()):
            return limits
        width = min(width * 16, vocab)


def _candidate_thresholds(
    scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, best: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Thresholds [K, 1] from each row's `best` [K, width] scores, and whether those sufficed, [K]
    bool.
    """
    width = best.shape[1]
    limited = (top_k > 0) & (top_k < scores.shape[1])
    kth = best.gather(1, (top_k - 1).clamp(0, width - 1).unsqueeze(1))
    kth = kth.masked_fill(~limited.unsqueeze(1), float("-inf"))
    kept = scores.masked_fill(scores < kth, float("-inf"))
    probs = (best - kept.logsumexp(1, keepdim=True)).exp().masked_fill_(best < kth, 0.0)
    mass = probs.cumsum(1)
    # a token stays while the mass before it is below top_p; the best one always does
    stays = (mass - probs) < top_p.unsqueeze(1)
    stays[:, 0] = True
    last = best.gather(1, stays.sum(1, keepdim=True) - 1)
    limits = torch.where(top_p.unsqueeze(1) < 1, torch.maximum(last, kth), kth)
    enough_mass = (top_p >= 1) | (mass[:, -1] >= top_p) | (best[:, -1] <= kth.squeeze(1))
    return limits, enough_mass & (~limited | (top_k <= width))


def sample_tokens(logits: torch.Tensor, random_rows: RandomRows | None) -> torch.Tensor:
    """Choose one token per row.

    logits: [N, V] float32, not changed
    random_rows: the rows to draw; all others are greedy
    Returns ids [N] int64.
    """
    require_shape("logits", logits, -1, -1)
    ids = logits.argmax(-1)
    if random_rows is None:
        return ids
    scores = logits.index_select(0, random_rows.rows)
    scores.div_(random_rows.temperature.unsqueeze(1))
    if random_rows.truncates:
        limit = keep_thresholds(
            scores, random_rows.top_k, random_rows.top_p, max_top_k=random_rows.max_top_k
        )
        scores.masked_fill_(scores < limit, float("-inf"))
    if random_rows.has_min_p:
        limit = scores.amax(1, keepdim=True) + random_rows.min_p.log().unsqueeze(1)
        scores.masked_fill_(scores < limit, float("-inf"))
    token_ids = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device)
    scores.add_(gumbel_noise(random_rows.seeds, random_rows.positions, token_ids))
    return ids.index_copy_(0, random_rows.rows, scores.argmax(-1))
