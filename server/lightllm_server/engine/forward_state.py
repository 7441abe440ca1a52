"""A step's tensors, made once per step from its plan and shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lightllm_kernels.attention_batch import make_decode_batch, make_prefill_batch
from lightllm_kernels.workspace import Workspace
from lightllm_server.engine.kv_pool import KVPool
from lightllm_server.layers.attention import AttentionState
from lightllm_server.router.step_plan import StepPlan

__all__ = ["RequestTable", "StepInputs", "make_step_inputs", "to_device"]


@dataclass(frozen=True, slots=True)
class RequestTable:
    """What the device keeps per row of the request table.

    req_to_slots: [R, M] int32, the slot of each position; last_ids: [R] int64, the latest
    sampled id.
    """

    req_to_slots: torch.Tensor
    last_ids: torch.Tensor

    @classmethod
    def make(cls, num_rows: int, max_length: int, device: torch.device) -> RequestTable:
        # entries are written before they are read, and most rows never grow long: touch no page
        table = torch.empty((num_rows, max_length), dtype=torch.int32, device=device)
        return cls(table, torch.zeros(num_rows, dtype=torch.int64, device=device))


@dataclass(frozen=True, slots=True)
class StepInputs:
    """token_ids: [T] int64."""

    token_ids: torch.Tensor
    attention: AttentionState


def to_device(array: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Copy to the device without waiting for it."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def make_step_inputs(
    plan: StepPlan,
    table: RequestTable,
    pool: KVPool,
    workspace: Workspace,
    dtype: torch.dtype,
) -> StepInputs:
    """Bring the request table up to the plan and make what the layers read.

    Writes `table.req_to_slots` for the plan's starts, tokens and copies; reads `table.last_ids`.
    """
    req_to_slots, device = table.req_to_slots, table.req_to_slots.device
    for start in plan.starts:
        prefix = torch.from_numpy(start.prefix_slots).to(device)
        req_to_slots[start.row, : len(prefix)] = prefix
    rows, positions = _rows_and_positions(plan)
    packed = np.empty((3, plan.num_tokens), np.int64)
    packed[0], packed[1], packed[2] = rows, positions, plan.slots
    token_rows, token_positions, slots = to_device(packed, device).unbind()
    req_to_slots.index_put_((token_rows, token_positions), slots.to(torch.int32))
    for copy in plan.copies:
        # the source's slots of this step's tokens are already in the table
        req_to_slots[copy.dst_row, : copy.length] = req_to_slots[copy.src_row, : copy.length]
    num_prefill = len(plan.token_ids)
    token_ids = to_device(plan.token_ids.astype(np.int64), device)
    if len(plan.decode_rows):
        decode_ids = table.last_ids.index_select(0, token_rows[num_prefill:])
        token_ids = torch.cat([token_ids, decode_ids]) if num_prefill else decode_ids
    state = AttentionState(
        positions=token_positions,
        slots=slots,
        kv=pool.layers,
        kv_scales=pool.layer_scales,
        req_to_slots=req_to_slots,
        prefill=make_prefill_batch(
            req_to_slots,
            plan.chunk_rows.tolist(),
            plan.chunk_starts.tolist(),
            plan.chunk_lens.tolist(),
            dtype=dtype,
        )
        if num_prefill
        else None,
        decode=make_decode_batch(
            req_to_slots,
            plan.decode_rows.tolist(),
            (plan.decode_positions + 1).tolist(),
            padding_slot=pool.padding_slot,
        )
        if len(plan.decode_rows)
        else None,
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
