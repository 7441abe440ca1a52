"""The index work of decode attention on the CPU: done once per step, used by every layer.

The B·H query heads are the rows of a sparse matrix whose columns are the pool's heads (slot · 2G +
head): a row's non-zeros are the keys that its query head attends to. One sampled product then makes
all scores straight from the pool, and one weighted bag of the same indices, seen from G rows
further on, sums the values.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch

__all__ = ["CpuDecodePlan", "DecodePlanKey", "make_cpu_decode_plan", "plan_bytes_per_token"]

# softmax turns it into 0; finite, because the sampled product multiplies what was there by 0
_MASKED = -1e30
# tokens of padding worth one more softmax call
_MAX_PADDING = 64


@dataclass(frozen=True, slots=True)
class DecodePlanKey:
    """What a plan depends on besides the batch; `gathered`: states are copied out of the pool."""

    heads: int
    groups: int
    gathered: bool


@dataclass(frozen=True, slots=True)
class CpuDecodePlan:
    """Requests sorted by length, in spans of equal padded length.

    order: [B] int64, batch index of each sorted request; None if they are in order
    slots: [K] int64, the slots to gather, one after the other; None unless gathered
    scores: [B*H, C] float32 sparse CSR with N non-zeros
    columns: [N], offsets: [B*H+1], values: [N] float32, the parts of `scores`
    mask: [N] float32, added to the scores, or None without padding
    softmaxes: per span a view of the scores' values and one of `weights`, [rows, length]
    weights: [N] float32
    """

    order: torch.Tensor | None
    slots: torch.Tensor | None
    scores: torch.Tensor
    columns: torch.Tensor
    offsets: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor | None
    softmaxes: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    weights: torch.Tensor


def plan_bytes_per_token(key: DecodePlanKey) -> int:
    """Bytes that a plan takes for each token of its requests' contexts while it is made."""
    # per query head: columns, values, weights and mask, which is there twice while it is joined
    scores = key.heads * 5 * 4
    # slots as int32, per span and joined, and as int64; padding as bool and as a mask
    return scores + 4 + 4 + (8 if key.gathered else 0) + 1 + 4


def make_cpu_decode_plan(
    key: DecodePlanKey,
    req_to_slots: torch.Tensor,
    rows: torch.Tensor,
    lens: tuple[int, ...],
    *,
    padding_slot: int,
) -> CpuDecodePlan:
    """Work out one step's indices.

    req_to_slots: [R, M] int32; rows: [B] int32; lens: B lengths >= 1; padding_slot: S, the last one
    """
    order = sorted(range(len(lens)), key=lens.__getitem__)
    spans = _spans([lens[i] for i in order])
    order_tensor = torch.tensor(order)
    sorted_rows = rows.index_select(0, order_tensor)
    sorted_lens = torch.tensor([lens[i] for i in order], dtype=torch.int32)
    slots, paddings = [], []
    for begin, end, length in spans:
        padding = torch.arange(length, dtype=torch.int32) >= sorted_lens[begin:end].unsqueeze(1)
        span_slots = req_to_slots[:, :length].index_select(0, sorted_rows[begin:end])
        slots.append(span_slots.masked_fill_(padding, padding_slot))
        paddings.append(padding)
    scores = _empty_scores(key, slots, num_slots=padding_slot + 1)
    values = scores.values()
    weights = torch.empty(values.shape)
    views = (_span_views(part, spans, key.heads) for part in (values, weights))
    is_padded = sum((end - begin) * length for begin, end, length in spans) > sum(lens)
    return CpuDecodePlan(
        order=order_tensor if order != list(range(len(lens))) else None,
        slots=_flat(slots).long() if key.gathered else None,
        scores=scores,
        columns=scores.col_indices(),
        offsets=scores.crow_indices(),
        values=values,
        mask=_mask(paddings, key.heads) if is_padded else None,
        softmaxes=tuple(zip(*views, strict=True)),
        weights=weights,
    )


def _spans(sorted_lens: list[int]) -> list[tuple[int, int, int]]:
    """Ranges (begin, end, padded length) of ascending lengths, each with little padding."""
    spans: list[tuple[int, int, int]] = []
    end = len(sorted_lens)
    while end > 0:
        longest = sorted_lens[end - 1]
        begin, padding = end, 0
        while begin > 0 and padding + longest - sorted_lens[begin - 1] <= _MAX_PADDING:
            padding += longest - sorted_lens[begin - 1]
            begin -= 1
        spans.append((begin, end, longest))
        end = begin
    return spans[::-1]


def _empty_scores(key: DecodePlanKey, slots: list[torch.Tensor], *, num_slots: int) -> torch.Tensor:
    """[B*H, C] sparse CSR of zeros.

    slots: per span [requests, length] int32. A query head's columns are the places of its request's
    tokens (pool slots, or positions in the gathered copy) times 2G, plus its KV head.
    """
    num_places = sum(s.numel() for s in slots) if key.gathered else num_slots
    num_columns = num_places * 2 * key.groups
    dtype = torch.int32 if num_columns < 2**31 else torch.int64
    kv_heads = (torch.arange(key.heads, dtype=dtype) // (key.heads // key.groups)).view(1, -1, 1)
    columns, row_lens, place = [], [], 0
    for span_slots in slots:
        places = span_slots.to(dtype)
        if key.gathered:
            end = place + span_slots.numel()
            places = torch.arange(place, end, dtype=dtype).view(span_slots.shape)
            place = end
        columns.append((places * (2 * key.groups)).unsqueeze(1) + kv_heads)
        row_lens += [span_slots.shape[1]] * (span_slots.shape[0] * key.heads)
    flat = _flat(columns)
    _silence_sparse_warning()
    return torch.sparse_csr_tensor(
        torch.tensor([0, *accumulate(row_lens)], dtype=dtype),
        flat,
        torch.zeros(flat.shape),
        size=(len(row_lens), num_columns),
        check_invariants=False,
    )


def _flat(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def _mask(paddings: list[torch.Tensor], heads: int) -> torch.Tensor:
    """Per span [requests, length] bool -> [N] float32, 0 for a token, very negative for padding."""
    masks = [torch.zeros(p.shape).masked_fill_(p, _MASKED).unsqueeze(1) for p in paddings]
    return _flat([mask.expand(-1, heads, -1) for mask in masks])


def _span_views(
    values: torch.Tensor, spans: list[tuple[int, int, int]], heads: int
) -> list[torch.Tensor]:
    """[N] -> per span [its rows, length]."""
    parts = torch.split(values, [(end - begin) * heads * length for begin, end, length in spans])
    return [part.view(-1, length) for part, (_, _, length) in zip(parts, spans, strict=True)]


@cache
def _silence_sparse_warning() -> None:
    """Torch says once per process that CSR tensors are in beta; let that be here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        zeros = torch.zeros(2, dtype=torch.int64)
        torch.sparse_csr_tensor(
            zeros, zeros[:0], torch.zeros(0), size=(1, 1), check_invariants=False
        )
