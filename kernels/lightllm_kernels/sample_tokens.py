"""Choose the next token of each row: argmax, or temperature → top-k → top-p → min-p → Gumbel
argmax.

Each filter is a threshold on the scores, so tokens that tie with the last kept one are all kept (as
in transformers' top-k) and the result does not depend on how a sort breaks ties. Of equal logits a
greedy row takes the lowest id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightllm_kernels.checks import require_shape
from lightllm_kernels.token_noise import gumbel_noise

__all__ = ["RandomRows", "make_random_rows", "sample_tokens"]

# candidates looked at before a whole row is sorted: on the CPU a full sort costs 20 times as much
_FIRST_CANDIDATES = 256
# more than top-k asks for, so that tokens that tie with the last one are seen too
_SPARE_CANDIDATES = 32


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
    if scores.is_cuda:
        width = vocab  # to see whether fewer suffice would wait for the device; its sort is cheap
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
