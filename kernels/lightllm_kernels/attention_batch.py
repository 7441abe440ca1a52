"""What attention needs to know about a step, computed once per step and shared by all layers.

Each batch holds int32 tensors on the device (for GPU kernels) and Python lists with ready gather
indices (for the CPU form, which must not read a tensor element by element).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightllm_kernels.checks import require

__all__ = [
    "DecodeBatch",
    "DecodeBucket",
    "PrefillBatch",
    "PrefillChunk",
    "make_decode_batch",
    "make_prefill_batch",
]

# a bucket closes when a request would add more padding than this share of its own length, since
# every bucket costs a fixed number of calls per layer
_MAX_PADDING = 0.5


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """One chunk: queries `start_loc … start_loc+length` of the batch over `context` = cached + own
    tokens.

    slots: [context] int64, the pool slots of positions 0 … context-1.
    mask: [length, context] additive, None where plain causal masking does (nothing cached).
    """

    start_loc: int
    length: int
    context: int
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """C chunks that lie one after the other in the flattened batch.

    rows, starts, lens: [C] int32; start_locs: [C+1] int32, where each chunk begins in the batch.
    """

    rows: torch.Tensor
    starts: torch.Tensor
    lens: torch.Tensor
    start_locs: torch.Tensor
    num_tokens: int
    max_len: int
    max_context: int
    chunks: tuple[PrefillChunk, ...]


@dataclass(frozen=True, slots=True)
class DecodeBucket:
    """Requests of similar length, padded to the longest.

    begin, end: its range in `DecodeBatch.order`; max_len: padded length.
    slots: [(end-begin) * max_len] int64, the padding slot where a request is shorter.
    mask: [end-begin, 1, 1, max_len] additive, None if all are equally long.
    """

    begin: int
    end: int
    max_len: int
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """B rows that decode one token each.

    rows, seq_lens: [B] int32, lengths including the token that this step writes.
    order: [B] int64, batch index of each sorted row; None if the buckets are in batch order
    already.
    """

    rows: torch.Tensor
    seq_lens: torch.Tensor
    num_tokens: int
    max_len: int
    order: torch.Tensor | None
    buckets: tuple[DecodeBucket, ...]


def make_prefill_batch(
    req_to_slots: torch.Tensor,
    rows: Sequence[int],
    starts: Sequence[int],
    lens: Sequence[int],
    *,
    dtype: torch.dtype,
) -> PrefillBatch:
    """Prepare the chunks of a step.

    req_to_slots: [R, M] int32, which must already hold the slots of the chunks' own tokens
    rows, starts, lens: [C] request-table row, tokens cached before the chunk, tokens of the chunk
    (>= 1)
    dtype: of the queries (the masks have it too)
    Keeps copies of what it reads from `req_to_slots`. ValueError on an empty chunk.
    """
    device = req_to_slots.device
    start_locs = [0]
    chunks = []
    for row, start, length in zip(rows, starts, lens, strict=True):
        require(length > 0 and start >= 0, f"chunk of row {row}: start {start}, length {length}")
        context = start + length
        mask = None
        if start and length > 1:
            mask = torch.full((length, context), float("-inf"), dtype=dtype, device=device)
            mask.triu_(start + 1)
        slots = req_to_slots[row, :context].long()
        chunks.append(PrefillChunk(start_locs[-1], length, context, slots, mask))
        start_locs.append(start_locs[-1] + length)
    return PrefillBatch(
        rows=_to_int32(rows, device),
        starts=_to_int32(starts, device),
        lens=_to_int32(lens, device),
        start_locs=_to_int32(start_locs, device),
        num_tokens=start_locs[-1],
        max_len=max(lens, default=0),
        max_context=max((chunk.context for chunk in chunks), default=0),
        chunks=tuple(chunks),
    )


def make_decode_batch(
    req_to_slots: torch.Tensor,
    rows: Sequence[int],
    seq_lens: Sequence[int],
    *,
    dtype: torch.dtype,
    padding_slot: int,
) -> DecodeBatch:
    """Prepare the decode rows of a step.

    req_to_slots: [R, M] int32, which must already hold the slot of each row's current token
    rows, seq_lens: [B] request-table row and its length including the current token (>= 1)
    dtype: of the queries; padding_slot: S, a slot whose contents are finite
    Keeps copies of what it reads from `req_to_slots`. ValueError on a length of 0.
    """
    device = req_to_slots.device
    lens = [int(n) for n in seq_lens]
    require(min(lens, default=1) > 0, f"a decode row has no token: seq_lens {lens}")
    order = sorted(range(len(lens)), key=lens.__getitem__)
    spans = _bucket_spans([lens[i] for i in order])
    if len(spans) == 1:
        order = list(range(len(lens)))
    rows_tensor, lens_tensor = _to_int32(rows, device), _to_int32(lens, device)
    order_tensor = torch.tensor(order, dtype=torch.int64, device=device)
    buckets = tuple(
        _make_bucket(
            req_to_slots, rows_tensor, lens_tensor, order_tensor, span,
            max_len=max(lens[i] for i in order[slice(*span)]),
            ragged=len({lens[i] for i in order[slice(*span)]}) > 1,
            dtype=dtype, padding_slot=padding_slot,
        )
        for span in spans
    )  # fmt: skip
    return DecodeBatch(
        rows=rows_tensor,
        seq_lens=lens_tensor,
        num_tokens=len(lens),
        max_len=max(lens, default=0),
        order=order_tensor if len(spans) > 1 else None,
        buckets=buckets,
    )


def _to_int32(values: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([int(v) for v in values], dtype=torch.int32, device=device)


def _bucket_spans(sorted_lens: list[int]) -> list[tuple[int, int]]:
    """Split ascending lengths into ranges whose shortest wastes at most `_MAX_PADDING` of the
    longest.
    """
    spans: list[tuple[int, int]] = []
    end = len(sorted_lens)
    while end > 0:
        shortest_allowed = sorted_lens[end - 1] * _MAX_PADDING
        begin = end
        while begin > 0 and sorted_lens[begin - 1] >= shortest_allowed:
            begin -= 1
        spans.append((begin, end))
        end = begin
    return spans[::-1]


def _make_bucket(
    req_to_slots: torch.Tensor,
    rows: torch.Tensor,
    seq_lens: torch.Tensor,
    order: torch.Tensor,
    span: tuple[int, int],
    *,
    max_len: int,
    ragged: bool,
    dtype: torch.dtype,
    padding_slot: int,
) -> DecodeBucket:
    members = order[slice(*span)]
    slots = req_to_slots[:, :max_len].index_select(0, rows.index_select(0, members)).long()
    mask = None
    if ragged:
        positions = torch.arange(max_len, device=seq_lens.device)
        padding = positions >= seq_lens.index_select(0, members).unsqueeze(1)
        slots.masked_fill_(padding, padding_slot)
        mask = torch.zeros(padding.shape, dtype=dtype, device=padding.device)
        mask = mask.masked_fill_(padding, float("-inf")).view(len(members), 1, 1, max_len)
    return DecodeBucket(*span, max_len, slots.view(-1), mask)
