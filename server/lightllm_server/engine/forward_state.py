"""A step's tensors, made once per step from its plan and shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lightllm_kernels.attention_batch import (
    DecodeBatch,
    PrefillBatch,
    make_decode_batch,
    make_prefill_batch,
)
from lightllm_kernels.triton_launch import runs_triton
from lightllm_kernels.workspace import Workspace
from lightllm_server.engine.kv_pool import KVPool
from lightllm_server.engine.staging import Uploader
from lightllm_server.layers.attention import AttentionState
from lightllm_server.router.step_plan import Int32Array, StepPlan

__all__ = ["RequestTable", "StepInputs", "make_step_inputs", "static_decode_batch"]

_NO_SLOTS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class RequestTable:
    """What the device keeps per row of the request table.

    req_to_slots: [R+1, M] int32, the slot of each position; last_ids: [R+1] int64, the latest
    sampled id. Row R is held for padding.
    """

    req_to_slots: torch.Tensor
    last_ids: torch.Tensor

    @classmethod
    def make(cls, num_rows: int, max_length: int, device: torch.device) -> RequestTable:
        # entries are written before they are read, and most rows never grow long: touch no page
        table = torch.empty((num_rows + 1, max_length), dtype=torch.int32, device=device)
        return cls(table, torch.zeros(num_rows + 1, dtype=torch.int64, device=device))


@dataclass(frozen=True, slots=True)
class StepInputs:
    """token_ids: [T] int64."""

    token_ids: torch.Tensor
    attention: AttentionState


def make_step_inputs(
    plan: StepPlan,
    table: RequestTable,
    pool: KVPool,
    workspace: Workspace,
    dtype: torch.dtype,
    uploader: Uploader,
) -> StepInputs:
    """Bring the request table up to the plan and make what the layers read.

    Writes `table.req_to_slots` for the plan's starts, tokens and copies; reads `table.last_ids`.
    Waits for nothing on the device.
    """
    req_to_slots = table.req_to_slots
    prefixes = [start.prefix_slots for start in plan.starts]
    rows, positions = _rows_and_positions(plan)
    packed = np.empty((3, plan.num_tokens), np.int64)
    packed[0], packed[1], packed[2] = rows, positions, plan.slots
    places, prefill_ids, prefix_slots, chunks, decodes = uploader.upload(
        packed,
        plan.token_ids.astype(np.int64),
        np.concatenate(prefixes) if prefixes else _NO_SLOTS,
        _chunks(plan),
        np.stack([plan.decode_rows, plan.decode_positions + 1]),
    )
    begin = 0
    for start, prefix in zip(plan.starts, prefixes, strict=True):
        req_to_slots[start.row, : len(prefix)] = prefix_slots[begin : begin + len(prefix)]
        begin += len(prefix)
    token_rows, token_positions, slots = places.unbind()
    req_to_slots.index_put_((token_rows, token_positions), slots.to(torch.int32))
    for copy in plan.copies:
        # the source's slots of this step's tokens are already in the table
        req_to_slots[copy.dst_row, : copy.length] = req_to_slots[copy.src_row, : copy.length]
    token_ids = prefill_ids
    if len(plan.decode_rows):
        decode_ids = table.last_ids.index_select(0, token_rows[len(prefill_ids) :])
        token_ids = torch.cat([token_ids, decode_ids]) if len(prefill_ids) else decode_ids
    state = AttentionState(
        positions=token_positions,
        slots=slots,
        kv=pool.layers,
        kv_scales=pool.layer_scales,
        req_to_slots=req_to_slots,
        prefill=_prefill_batch(plan, req_to_slots, chunks, dtype),
        decode=_decode_batch(plan, req_to_slots, decodes, pool.padding_slot),
        workspace=workspace,
    )
    return StepInputs(token_ids, state)


def _rows_and_positions(plan: StepPlan) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Row and sequence position of each of the step's tokens, [T] each."""
    lens = plan.chunk_lens
    assert lens.sum() == len(plan.token_ids), (lens, len(plan.token_ids))
    begins = np.cumsum(lens) - lens
    prefill = np.arange(len(plan.token_ids)) + np.repeat(plan.chunk_starts - begins, lens)
    rows = np.concatenate([np.repeat(plan.chunk_rows, lens), plan.decode_rows])
    return rows, np.concatenate([prefill, plan.decode_positions])


def _chunks(plan: StepPlan) -> Int32Array:
    """Rows, starts, lens of C chunks, then C+1 starts in the batch: [4C+1]."""
    ends = np.cumsum(plan.chunk_lens, dtype=np.int32)
    return np.concatenate(
        [plan.chunk_rows, plan.chunk_starts, plan.chunk_lens, np.zeros(1, np.int32), ends]
    )


def _prefill_batch(
    plan: StepPlan, req_to_slots: torch.Tensor, chunks: torch.Tensor, dtype: torch.dtype
) -> PrefillBatch | None:
    """chunks: `_chunks` on the device."""
    if not len(plan.token_ids):
        return None
    if not runs_triton(req_to_slots):
        return make_prefill_batch(
            req_to_slots,
            plan.chunk_rows.tolist(),
            plan.chunk_starts.tolist(),
            plan.chunk_lens.tolist(),
            dtype=dtype,
        )
    count = len(plan.chunk_rows)
    rows, starts, lens, start_locs = torch.split(chunks, [count, count, count, count + 1])
    return PrefillBatch(
        rows=rows,
        starts=starts,
        lens=lens,
        start_locs=start_locs,
        num_tokens=len(plan.token_ids),
        # for the form without kernels
        chunks=(),
    )


def _decode_batch(
    plan: StepPlan, req_to_slots: torch.Tensor, decodes: torch.Tensor, padding_slot: int
) -> DecodeBatch | None:
    """decodes: [2, D] rows and lengths on the device."""
    if not len(plan.decode_rows):
        return None
    if not runs_triton(req_to_slots):
        lens = (plan.decode_positions + 1).tolist()
        return make_decode_batch(
            req_to_slots, plan.decode_rows.tolist(), lens, padding_slot=padding_slot
        )
    rows, seq_lens = decodes.unbind()
    longest = int(plan.decode_positions.max()) + 1
    return DecodeBatch(rows, seq_lens, (), padding_slot, longest=longest)


def static_decode_batch(
    rows: torch.Tensor, seq_lens: torch.Tensor, *, max_len: int, padding_slot: int
) -> DecodeBatch:
    """A batch whose lengths are read on the device each time, for a step that is recorded.

    rows, seq_lens: [B] int32; max_len: no length will ever be larger.
    """
    if runs_triton(seq_lens):
        # the bound chooses the number of splits, which is recorded with the launch
        return DecodeBatch(rows, seq_lens, (), padding_slot, longest=max_len)
    # nothing is recorded on the CPU: the step runs again and may look
    return DecodeBatch(rows, seq_lens, tuple(seq_lens.tolist()), padding_slot)
