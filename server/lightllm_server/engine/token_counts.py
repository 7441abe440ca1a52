"""Which tokens a row's prompt and output hold, on the device, for the penalties: only rows that
use them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lightllm_kernels.penalties import apply_penalties, count_tokens
from lightllm_server.engine.staging import Uploader
from lightllm_server.messages import SamplingParams
from lightllm_server.router.step_plan import Int32Array, RowStart

__all__ = ["PenalisedRows", "TokenCounts"]


@dataclass(frozen=True, slots=True)
class PenalisedRows:
    """K rows of a step's logits, their rows of the request table, and their three penalties [K]."""

    rows: torch.Tensor
    state_rows: torch.Tensor
    prompt_seen: torch.Tensor
    output_counts: torch.Tensor
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor

    def apply(self, logits: torch.Tensor) -> None:
        """logits: [N, V] float32, changed in place."""
        apply_penalties(
            logits,
            self.rows,
            self.state_rows,
            self.prompt_seen,
            self.output_counts,
            repetition=self.repetition,
            presence=self.presence,
            frequency=self.frequency,
        )


class TokenCounts:
    """Tables `prompt_seen [R, V] bool` and `output_counts [R, V] int32` with a row per row of the
    request table, made for the first that needs one: what they take is known beforehand.
    """

    def __init__(
        self, num_rows: int, vocab_size: int, device: torch.device, uploader: Uploader
    ) -> None:
        self._shape = (num_rows, vocab_size)
        self._device = device
        self._uploader = uploader
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None
        # request-table row → its penalties
        self._params: dict[int, SamplingParams] = {}

    def start(self, start: RowStart) -> None:
        """Begin a row with the tokens it has; forgets what the row held before."""
        self._params.pop(start.row, None)
        if not start.sampling.has_penalties:
            return
        self._params[start.row] = start.sampling
        tokens = np.asarray(start.token_ids, np.int64)
        prompt, output = self._uploader.upload(
            tokens[: start.prompt_len], tokens[start.prompt_len :]
        )
        prompt_seen, output_counts = self._made()
        # filling a selection waits for nothing, unlike assigning to one
        prompt_seen[start.row].zero_().index_fill_(0, prompt, True)
        counts = output_counts[start.row].zero_()
        counts.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))

    def _made(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._tables is None:
            # rows are cleared when they begin: on the CPU the pages of others are never touched
            self._tables = (
                torch.empty(self._shape, dtype=torch.bool, device=self._device),
                torch.empty(self._shape, dtype=torch.int32, device=self._device),
            )
        return self._tables

    def add(self, rows: Int32Array, ids: torch.Tensor) -> None:
        """Count the tokens just sampled; ids: [N] int64 on the device."""
        chosen = self._chosen(rows)
        if chosen:
            places = np.array([(index, row) for index, row, _ in chosen], np.int64)
            indices, states = self._uploader.upload(places.T.copy())[0].unbind()
            count_tokens(self._made()[1], states, ids.index_select(0, indices))

    def penalised(self, rows: Int32Array) -> PenalisedRows | None:
        """The rows of a step that have penalties, None if there are none."""
        chosen = self._chosen(rows)
        if not chosen:
            return None
        penalties = [
            (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) for _, _, p in chosen
        ]
        places, values = self._uploader.upload(
            np.array([(index, row) for index, row, _ in chosen], np.int64).T.copy(),
            np.array(penalties, np.float32).T.copy(),
        )
        logits_rows, states = places.unbind()
        repetition, presence, frequency = values.unbind()
        prompt_seen, output_counts = self._made()
        return PenalisedRows(
            rows=logits_rows,
            state_rows=states,
            prompt_seen=prompt_seen,
            output_counts=output_counts,
            repetition=repetition,
            presence=presence,
            frequency=frequency,
        )

    def _chosen(self, rows: Int32Array) -> list[tuple[int, int, SamplingParams]]:
        if not self._params:
            return []
        return [
            (index, row, self._params[row])
            for index, row in enumerate(rows.tolist())
            if row in self._params
        ]
