"""Collects the rows of one step and lays them out as a `StepPlan`; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightllm_server.router.request import Choice, Request
from lightllm_server.router.row_table import IntArray, RowTable
from lightllm_server.router.step_plan import Int32Array, RowCopy, RowStart, StepPlan

__all__ = ["PlannedStep", "StepBuilder"]


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A plan whose result is still to come, and whose rows they were when it was made.

    samples: choice of each sampled row; keys: [N] of these choices. chunks: choice of each prefill
    chunk.
    """

    plan: StepPlan
    samples: list[Choice]
    keys: IntArray
    chunks: list[Choice]

    @property
    def requests(self) -> set[Request]:
        return {choice.request for choice in [*self.samples, *self.chunks]}


class StepBuilder:
    """Chunks first, then the decode rows, as the engine wants them."""

    def __init__(self, step: int, rows: RowTable) -> None:
        self.step = step
        self._rows = rows
        self._num_tokens = 0
        self._token_ids: list[Int32Array] = []
        self._chunk_rows: list[int] = []
        self._chunk_starts: list[int] = []
        self._chunk_lens: list[int] = []
        self._logprob_chunks: list[int] = []
        self._starts: list[RowStart] = []
        self._copies: list[RowCopy] = []
        self._sample_index: list[int] = []
        self._sample_positions: list[int] = []
        self._samples: list[Choice] = []
        self._chunks: list[Choice] = []

    def start(self, choice: Choice, prefix_slots: Int32Array) -> None:
        """The choice's row begins in this step."""
        request = choice.request
        sampling = request.message.sampling
        self._starts.append(
            RowStart(
                row=choice.row,
                choice=choice.index,
                prefix_slots=prefix_slots,
                sampling=sampling,
                prompt_len=len(request.prompt),
                token_ids=tuple(choice.known.tolist()) if sampling.has_penalties else (),
            )
        )
        choice.started = True

    def chunk(self, choice: Choice, start: int, count: int) -> None:
        """Prefill `count` known tokens of the choice from position `start` on."""
        if choice.request.prompt_logprobs_due:
            self._logprob_chunks.append(len(self._chunks))
        self._chunks.append(choice)
        self._token_ids.append(choice.known[start : start + count])
        self._chunk_rows.append(choice.row)
        self._chunk_starts.append(start)
        self._chunk_lens.append(count)
        self._num_tokens += count

    def copy(self, source: Choice, child: Choice, length: int) -> None:
        """The child's row gets the slots of the source's first `length` positions."""
        self._copies.append(RowCopy(source.row, child.row, length))

    def sample(self, choice: Choice, position: int) -> None:
        """Sample a token for the choice from the logits of the newest chunk's last token."""
        self._sample_index.append(self._num_tokens - 1)
        self._sample_positions.append(position)
        self._samples.append(choice)

    def build(self, decode_rows: IntArray, slots: Int32Array) -> PlannedStep:
        """Add the decode rows [D] and lay out; slots: [P+D]. This step is not counted yet."""
        rows = self._rows
        num_decode = len(decode_rows)
        positions = rows.lengths[decode_rows]
        prefill_rows = [choice.row for choice in self._samples]
        sample_rows = np.concatenate([np.array(prefill_rows, dtype=np.int64), decode_rows])
        decode_index = np.arange(self._num_tokens, self._num_tokens + num_decode)
        plan = StepPlan(
            step=self.step,
            token_ids=np.concatenate([_int32([]), *self._token_ids]),
            chunk_rows=_int32(self._chunk_rows),
            chunk_starts=_int32(self._chunk_starts),
            chunk_lens=_int32(self._chunk_lens),
            decode_rows=decode_rows.astype(np.int32),
            decode_positions=positions.astype(np.int32),
            slots=slots,
            sample_token_index=np.concatenate([_int32(self._sample_index), _int32(decode_index)]),
            sample_rows=sample_rows.astype(np.int32),
            sample_positions=np.concatenate(
                [_int32(self._sample_positions), _int32(positions + 1)]
            ),
            sample_out_lens=rows.out_lens[sample_rows].astype(np.int32),
            prompt_logprob_chunks=_int32(self._logprob_chunks),
            starts=tuple(self._starts),
            copies=tuple(self._copies),
        )
        samples = self._samples + rows.choices[decode_rows].tolist()
        return PlannedStep(plan, samples, rows.keys[sample_rows], self._chunks)


def _int32(values: list[int] | IntArray) -> Int32Array:
    return np.array(values, dtype=np.int32)
