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

_FIRST_ROWS = 8
_NO_STATE = -1


@dataclass(frozen=True, slots=True)
class PenalisedRows:
    """K rows of a step's logits, their rows in the tables, and their three penalties [K]."""

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
    """Tables `prompt_seen [P, V] bool` and `output_counts [P, V] int32`; P grows with the rows
    in use.
    """

    def __init__(self, vocab_size: int, device: torch.device, uploader: Uploader) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._uploader = uploader
        self._prompt_seen = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)
        self._output_counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)
        self._free: list[int] = []
        # request-table row → state row and its penalties
        self._states: dict[int, tuple[int, SamplingParams]] = {}

    def start(self, start: RowStart) -> None:
        """Begin a row with the tokens it has; frees what the row held before."""
        if (old := self._states.pop(start.row, None)) is not None:
            self._free.append(old[0])
        if not start.sampling.has_penalties:
            return
        if not self._free:
            self._grow()
        state = self._free.pop()
        self._states[start.row] = state, start.sampling
        tokens = np.asarray(start.token_ids, np.int64)
        prompt, output = self._uploader.upload(
            tokens[: start.prompt_len], tokens[start.prompt_len :]
        )
        # filling a selection waits for nothing, unlike assigning to one
        self._prompt_seen[state].zero_().index_fill_(0, prompt, True)
        counts = self._output_counts[state].zero_()
        counts.index_add_(0, output, torch.ones_like(output, dtype=torch.int32))

    def add(self, rows: Int32Array, ids: torch.Tensor) -> None:
        """Count the tokens just sampled; ids: [N] int64 on the device."""
        chosen = self._chosen(rows)
        if chosen:
            places = np.array([(index, state) for index, state, _ in chosen], np.int64)
            indices, states = self._uploader.upload(places.T.copy())[0].unbind()
            count_tokens(self._output_counts, states, ids.index_select(0, indices))

    def penalised(self, rows: Int32Array) -> PenalisedRows | None:
        """The rows of a step that have penalties, None if there are none."""
        chosen = self._chosen(rows)
        if not chosen:
            return None
        penalties = [
            (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) for _, _, p in chosen
        ]
        places, values = self._uploader.upload(
            np.array([(index, state) for index, state, _ in chosen], np.int64).T.copy(),
            np.array(penalties, np.float32).T.copy(),
        )
        logits_rows, states = places.unbind()
        repetition, presence, frequency = values.unbind()
        return PenalisedRows(
            rows=logits_rows,
            state_rows=states,
            prompt_seen=self._prompt_seen,
            output_counts=self._output_counts,
            repetition=repetition,
            presence=presence,
            frequency=frequency,
        )

    def _chosen(self, rows: Int32Array) -> list[tuple[int, int, SamplingParams]]:
        if not self._states:
            return []
        return [
            (index, *self._states[row])
            for index, row in enumerate(rows.tolist())
            if row in self._states
        ]

    def _grow(self) -> None:
        old = len(self._prompt_seen)
        new = max(_FIRST_ROWS, 2 * old)
        for name in ("_prompt_seen", "_output_counts"):
            table = getattr(self, name)
            grown = torch.zeros((new, self._vocab_size), dtype=table.dtype, device=self._device)
            grown[:old] = table
            setattr(self, name, grown)
        self._free += range(old, new)
