"""In-place changes to logits before sampling: penalties, logit bias, masks.

repetition (Keskar et al., 2019): a token of the prompt or the output has its logit divided by the
penalty if positive, else multiplied; presence and frequency (OpenAI): subtract `presence` once and
`frequency` per occurrence in the output.
"""

from __future__ import annotations

import torch

from lightllm_kernels.checks import require_shape

__all__ = ["add_logit_bias", "apply_penalties", "apply_penalties_reference", "count_tokens"]


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
    counts = output_counts.index_select(0, state_rows)
    seen = prompt_seen.index_select(0, state_rows).logical_or_(counts > 0)
    chosen = logits.index_select(0, rows)
    factor = torch.where(chosen > 0, repetition.reciprocal().unsqueeze(1), repetition.unsqueeze(1))
    chosen = torch.where(seen, chosen * factor, chosen)
    chosen.sub_(counts * frequency.unsqueeze(1)).sub_((counts > 0) * presence.unsqueeze(1))
    logits.index_copy_(0, rows, chosen)


def count_tokens(output_counts: torch.Tensor, state_rows: torch.Tensor, ids: torch.Tensor) -> None:
    """Count sampled tokens: output_counts[state_rows[i], ids[i]] += 1.

    output_counts: [P, V] int32, changed in place; state_rows, ids: [K] int64
    """
    ones = torch.ones(ids.shape, dtype=output_counts.dtype, device=output_counts.device)
    output_counts.index_put_((state_rows, ids), ones, accumulate=True)


def add_logit_bias(
    logits: torch.Tensor, rows: torch.Tensor, ids: torch.Tensor, values: torch.Tensor
) -> None:
    """logits[rows[i], ids[i]] += values[i]; a value of -inf forbids the token (min_new_tokens,
    allowed ids).

    logits: [N, V] float32, changed in place; rows, ids: [K] int64; values: [K] float32
    """
    logits.index_put_((rows, ids), values, accumulate=True)
