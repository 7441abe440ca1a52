"""What attention needs to know about a step, computed once per step and shared by all layers.

Each batch holds int32 tensors on the device (for the Triton kernels) and, on the CPU, Python lists
with ready gather indices (for the CPU form, which must not read a tensor element by element).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lightllm_kernels.checks import require
from lightllm_kernels.cpu_decode_plan import CpuDecodePlan, DecodePlanKey

__all__ = ["DecodeBatch", "PrefillBatch", "PrefillChunk", "make_decode_batch", "make_prefill_batch"]


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
    chunks: what the CPU form reads; empty on other devices.
    """

    rows: torch.Tensor
    starts: torch.Tensor
    lens: torch.Tensor
    start_locs: torch.Tensor
    num_tokens: int
    chunks: tuple[PrefillChunk, ...]


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """B rows that decode one token each.

    rows, seq_lens: [B] int32, lengths including the token that this step writes. A row of length 0
    gets zeros on a GPU.
    lens: seq_lens on the host, for the CPU form; may be empty where `longest` is given.
    longest: the largest of seq_lens, all that a kernel's launch needs to know of them; in a batch
    of a CUDA graph, whose seq_lens change between replays, an upper bound. None: that of `lens`.
    num_splits: into how many parts the kernel splits each context; None leaves it to
    `decode_attention`, which makes the same choice in each layer and knows the KV heads.
    cpu_plans: what `decode_attention` works out in the first layer and keeps for the others.
    """

    rows: torch.Tensor
    seq_lens: torch.Tensor
    lens: tuple[int, ...]
    padding_slot: int
    num_splits: int | None = None
    longest: int | None = None
    cpu_plans: dict[DecodePlanKey, CpuDecodePlan] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return self.rows.shape[0]

    @property
    def max_len(self) -> int:
        return max(self.lens, default=0) if self.longest is None else self.longest


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
    Keeps copies of what it reads from `req_to_slots`; off the CPU reads nothing and waits for
    nothing. ValueError on an empty chunk.
    """
    device = req_to_slots.device
    start_locs = [0]
    for row, start, length in zip(rows, starts, lens, strict=True):
        require(length > 0 and start >= 0, f"chunk of row {row}: start {start}, length {length}")
        start_locs.append(start_locs[-1] + length)
    device_rows, device_starts, device_lens, device_start_locs = _to_int32(
        device, rows, starts, lens, start_locs
    )
    return PrefillBatch(
        rows=device_rows,
        starts=device_starts,
        lens=device_lens,
        start_locs=device_start_locs,
        num_tokens=start_locs[-1],
        chunks=_cpu_chunks(req_to_slots, rows, starts, lens, dtype) if device.type == "cpu" else (),
    )


def _cpu_chunks(
    req_to_slots: torch.Tensor,
    rows: Sequence[int],
    starts: Sequence[int],
    lens: Sequence[int],
    dtype: torch.dtype,
) -> tuple[PrefillChunk, ...]:
    chunks, start_loc = [], 0
    for row, start, length in zip(rows, starts, lens, strict=True):
        context = start + length
        mask = None
        if start and length > 1:
            mask = torch.full((length, context), float("-inf"), dtype=dtype)
            mask.triu_(start + 1)
        slots = req_to_slots[row, :context].long()
        chunks.append(PrefillChunk(start_loc, length, context, slots, mask))
        start_loc += length
    return tuple(chunks)


def make_decode_batch(
    req_to_slots: torch.Tensor,
    rows: Sequence[int],
    seq_lens: Sequence[int],
    *,
    padding_slot: int,
) -> DecodeBatch:
    """Prepare the decode rows of a step.

    req_to_slots: [R, M] int32, which must already hold the slot of each row's current token, and
    must not change in these rows before the step's attention is done
    rows, seq_lens: [B] request-table row and its length including the current token (>= 1)
    padding_slot: S, a slot whose contents are finite
    Off the CPU waits for nothing. ValueError on a length of 0.
    """
    lens = tuple(int(n) for n in seq_lens)
    require(min(lens, default=1) > 0, f"a decode row has no token: seq_lens {lens}")
    device_rows, seq_lens_tensor = _to_int32(req_to_slots.device, rows, lens)
    return DecodeBatch(device_rows, seq_lens_tensor, lens, padding_slot)


def _to_int32(device: torch.device, *columns: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Each column as an int32 tensor, all by one copy that the host does not wait for."""
    if device.type == "cpu":
        return tuple(torch.tensor([int(v) for v in c], dtype=torch.int32) for c in columns)
    lens = [len(column) for column in columns]
    packed = torch.tensor(
        [int(value) for column in columns for value in column],
        dtype=torch.int32,
        # a pinned block is not given out again before the copy from it is done
        pin_memory=device.type == "cuda",
    )
    return torch.split(packed.to(device, non_blocking=True), lens)
