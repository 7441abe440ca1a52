"""In-place changes to logits before sampling: penalties, logit bias, masks.

repetition (Keskar et al., 2019): a token of the prompt or the output has its logit divided by the
penalty if positive, else multiplied; presence and frequency (OpenAI): subtract `presence` once and
`frequency` per occurrence in the output. On a GPU each is one kernel that changes the logits where
they lie.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm_kernels.checks import require_int, require_rows, require_shape
from lightllm_kernels.triton_launch import launch, runs_triton

__all__ = ["add_logit_bias", "apply_penalties", "apply_penalties_reference", "count_tokens"]

# tokens of a row that one program handles: 8 a thread
_BLOCK, _NUM_WARPS = 1024, 4
# scattered additions that one program makes
_SCATTER = 128


def apply_penalties_reference(
    logits: torch.Tensor,
    rows: torch.Tensor,
    state_rows: torch.Tensor,
    prompt_seen: torch.Tensor,
    output_counts: torch.Tensor,
    *,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    """As `apply_penalties`, one row and one token at a time."""
    for index, (row, state) in enumerate(zip(rows.tolist(), state_rows.tolist(), strict=True)):
        for token in range(logits.shape[1]):
            count = int(output_counts[state, token])
            logit = float(logits[row, token])
            if count or bool(prompt_seen[state, token]):
                factor = float(repetition[index])
                logit = logit / factor if logit > 0 else logit * factor
            logit -= float(presence[index]) * (count > 0) + float(frequency[index]) * count
            logits[row, token] = logit


@triton.jit(
    do_not_specialize_on_alignment=[
        "rows_ptr",
        "state_rows_ptr",
        "repetition_ptr",
        "presence_ptr",
        "frequency_ptr",
    ]
)
def _penalties_kernel(
    logits_ptr,
    rows_ptr,
    state_rows_ptr,
    prompt_seen_ptr,
    output_counts_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    vocab,
    stride_logits_row,
    stride_seen_row,
    stride_counts_row,
    BLOCK: tl.constexpr,
):
    """One block of one row; reads and writes the logits of tokens that occurred alone."""
    index = tl.program_id(0)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < vocab
    state = tl.load(state_rows_ptr + index).to(tl.int64)
    counts = tl.load(output_counts_ptr + state * stride_counts_row + offs, mask=mask, other=0)
    seen = tl.load(prompt_seen_ptr + state * stride_seen_row + offs, mask=mask, other=0)
    mask = mask & ((counts > 0) | (seen != 0))
    row = tl.load(rows_ptr + index).to(tl.int64)
    logit_ptrs = logits_ptr + row * stride_logits_row + offs
    logits = tl.load(logit_ptrs, mask=mask, other=0.0)
    repetition = tl.load(repetition_ptr + index)
    logits = logits * tl.where(logits > 0, 1.0 / repetition, repetition)
    logits -= counts.to(tl.float32) * tl.load(frequency_ptr + index)
    logits -= tl.where(counts > 0, tl.load(presence_ptr + index), 0.0)
    tl.store(logit_ptrs, logits, mask=mask)


@triton.jit(
    do_not_specialize=["size"],
    do_not_specialize_on_alignment=["rows_ptr", "ids_ptr", "values_ptr"],
)
def _scatter_add_kernel(
    table_ptr,
    rows_ptr,
    ids_ptr,
    values_ptr,
    size,
    stride_table_row,
    HAS_VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """table[rows[i], ids[i]] += values[i], or 1; entries may repeat."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    rows = tl.load(rows_ptr + offs, mask=mask, other=0).to(tl.int64)
    ids = tl.load(ids_ptr + offs, mask=mask, other=0).to(tl.int64)
    if HAS_VALUES:
        values = tl.load(values_ptr + offs, mask=mask, other=0.0)
    else:
        values = tl.full((BLOCK,), 1, table_ptr.dtype.element_ty)
    tl.atomic_add(table_ptr + rows * stride_table_row + ids, values, mask=mask, sem="relaxed")


def _scatter_add(
    table: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, values: torch.Tensor | None
) -> None:
    size = rows.shape[0]
    require_shape("ids", ids, size)
    require_rows("the table", table)
    for name, tensor in (("rows", rows), ("ids", ids), ("values", values)):
        if tensor is not None:
            require_rows(name, tensor)
    if size:
        launch(
            _scatter_add_kernel,
            (triton.cdiv(size, _SCATTER),),
            table,
            rows,
            ids,
            ids if values is None else values,
            size,
            table.stride(0),
            HAS_VALUES=values is not None,
            BLOCK=_SCATTER,
            num_warps=_NUM_WARPS,
        )


def _launch_penalties(
    logits: torch.Tensor,
    indices: tuple[torch.Tensor, torch.Tensor],
    tables: tuple[torch.Tensor, torch.Tensor],
    penalties: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """indices: rows, state rows; tables: prompt seen, output counts; penalties: as the kernel's."""
    num_rows, vocab = indices[0].shape[0], logits.shape[1]
    prompt_seen, output_counts = tables
    require_int("output_counts", output_counts, torch.int32)
    require_int("prompt_seen", prompt_seen, torch.bool)
    for name, tensor in (("logits", logits), ("prompt_seen", tables[0]), ("counts", tables[1])):
        require_rows(name, tensor)
        require_shape(name, tensor, -1, vocab)
    for tensor in (*indices, *penalties):
        require_rows("a vector of the rows", tensor)
        require_shape("a vector of the rows", tensor, num_rows)
    if num_rows:
        launch(
            _penalties_kernel,
            (num_rows, triton.cdiv(vocab, _BLOCK)),
            logits,
            *indices,
            *tables,
            *penalties,
            vocab,
            logits.stride(0),
            prompt_seen.stride(0),
            output_counts.stride(0),
            BLOCK=_BLOCK,
            num_warps=_NUM_WARPS,
        )


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    state_rows: torch.Tensor,
    prompt_seen: torch.Tensor,
    output_counts: torch.Tensor,
    *,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    """Penalise K rows of `logits` in place.

    logits: [N, V] float32
    rows: [K] int64, the rows of `logits` to change; state_rows: [K] int64, their rows in the two
    tables
    prompt_seen: [P, V] bool, tokens of the prompt; output_counts: [P, V] int32, occurrences in the
    output
    repetition, presence, frequency: [K] float32; 1, 0 and 0 change nothing
    """
    require_shape("state_rows", state_rows, rows.shape[0])
    if runs_triton(logits):
        tables = (prompt_seen, output_counts)
        return _launch_penalties(
            logits, (rows, state_rows), tables, (repetition, presence, frequency)
        )
    counts = output_counts.index_select(0, state_rows)
    seen = prompt_seen.index_select(0, state_rows).logical_or_(counts > 0)
    chosen = logits.index_select(0, rows)
    factor = torch.where(chosen > 0, repetition.reciprocal().unsqueeze(1), repetition.unsqueeze(1))
    chosen = torch.where(seen, chosen * factor, chosen)
    chosen.sub_(counts * frequency.unsqueeze(1)).sub_((counts > 0) * presence.unsqueeze(1))
    logits.index_copy_(0, rows, chosen)
    return None


def count_tokens(output_counts: torch.Tensor, state_rows: torch.Tensor, ids: torch.Tensor) -> None:
    """Count sampled tokens: output_counts[state_rows[i], ids[i]] += 1.

    output_counts: [P, V] int32, changed in place; state_rows, ids: [K] int64
    """
    if runs_triton(output_counts):
        return _scatter_add(output_counts, state_rows, ids, None)
    ones = torch.ones(ids.shape, dtype=output_counts.dtype, device=output_counts.device)
    output_counts.index_put_((state_rows, ids), ones, accumulate=True)
    return None


def add_logit_bias(
    logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, values: torch.Tensor
) -> None:
    """logits[rows[i], ids[i]] += values[i]; a value of -inf forbids the token (min_new_tokens,
    allowed ids).

    logits: [N, V] float32, changed in place; rows, ids: [K] int64; values: [K] float32
    """
    if runs_triton(logits):
        require_shape("values", values, rows.shape[0])
        return _scatter_add(logits, rows, ids, values)
    logits.index_put_((rows, ids), values, accumulate=True)
    return None
