"""Logprobs of prompt tokens, in slices, so that a long prompt never holds all its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from lightllm_kernels.logprobs import token_logprobs, top_logprobs
from lightllm_server.engine.staging import Uploader
from lightllm_server.errors import EngineError
from lightllm_server.messages import PromptLogprobs, TopLogprob
from lightllm_server.router.step_plan import Int32Array, RowStart, StepPlan

__all__ = ["ChunkLogprobs", "PromptScorer", "prompt_logits"]

_MAX_LOGITS = 2**23

LogitsOf = Callable[[torch.Tensor], torch.Tensor]


def prompt_logits(
    hidden: torch.Tensor, plan: StepPlan, vocab_size: int, logits_of: LogitsOf
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The logits of the chunks that want prompt logprobs, as (chunk, offset in it, logits [n, V]).

    Every rank of a group runs through it, since `logits_of` is a collective.
    """
    slice_len = max(1, _MAX_LOGITS // vocab_size)
    begins = plan.chunk_lens.cumsum() - plan.chunk_lens
    for chunk in plan.prompt_logprob_chunks.tolist():
        begin, length = int(begins[chunk]), int(plan.chunk_lens[chunk])
        for offset in range(0, length, slice_len):
            end = min(offset + slice_len, length)
            yield chunk, offset, logits_of(hidden[begin + offset : begin + end])


@dataclass(slots=True)
class ChunkLogprobs:
    """One chunk's logprobs on their way to the host, in parts along the chunk.

    starts_prompt: the first token has none. parts: [n] logprobs; tops: ([n, k], ids [n, k]).
    """

    starts_prompt: bool
    parts: list[torch.Tensor] = field(default_factory=list)
    tops: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def message(self) -> PromptLogprobs:
        """As messages carry it; waits for the device."""
        values: list[float | None] = [None] if self.starts_prompt else []
        tops: list[tuple[TopLogprob, ...]] = [()] if self.starts_prompt and self.tops else []
        for part in self.parts:
            values += part.tolist()
        for logprobs, ids in self.tops:
            for row_ids, row_values in zip(ids.tolist(), logprobs.tolist(), strict=True):
                tops.append(tuple(map(TopLogprob, row_ids, row_values)))
        return PromptLogprobs(tuple(values), tuple(tops))


class PromptScorer:
    """Keeps, between the chunks of a prompt, the logits row that predicts the next chunk's first
    token.
    """

    def __init__(self, vocab_size: int, logits_of: LogitsOf, uploader: Uploader) -> None:
        self._vocab_size = vocab_size
        self._uploader = uploader
        self._logits_of = logits_of
        self._last_logits: dict[int, torch.Tensor] = {}
        self._starts: dict[int, tuple[int, int]] = {}

    def start(self, start: RowStart) -> None:
        """Begin a row; forgets what was kept for it."""
        self._last_logits.pop(start.row, None)
        self._starts.pop(start.row, None)
        if (count := start.sampling.prompt_logprobs) is not None:
            self._starts[start.row] = start.prompt_len, count

    def score(self, hidden: torch.Tensor, plan: StepPlan) -> dict[int, ChunkLogprobs]:
        """Chunk index → logprobs of the chunk's tokens given those before; hidden: [T, E]."""
        results: dict[int, ChunkLogprobs] = {}
        for chunk, offset, logits in prompt_logits(hidden, plan, self._vocab_size, self._logits_of):
            row = int(plan.chunk_rows[chunk])
            if row not in self._starts:
                raise EngineError(f"row {row} asked for no prompt logprobs, its chunk {chunk} does")
            if offset == 0:
                results[chunk] = self._first(plan, chunk, row)
            begin = int(plan.chunk_lens[:chunk].sum()) + offset
            length = int(plan.chunk_lens[chunk])
            # row i of the logits predicts token i+1 of the chunk; the last one the next chunk's
            targets = plan.token_ids[begin + 1 : begin + min(len(logits) + 1, length - offset)]
            self._append(results[chunk], logits[: len(targets)], targets, row)
            if offset + len(logits) == length:
                self._keep_last(plan, chunk, row, logits[-1:])
        return results

    def _first(self, plan: StepPlan, chunk: int, row: int) -> ChunkLogprobs:
        """A chunk's result with the logprob of its first token, predicted by the chunk before."""
        begin, start = int(plan.chunk_lens[:chunk].sum()), int(plan.chunk_starts[chunk])
        result = ChunkLogprobs(starts_prompt=start == 0)
        if start:
            if row not in self._last_logits:
                raise EngineError(f"row {row} continues at {start}, but no logits were kept for it")
            logits = self._last_logits.pop(row)
            self._append(result, logits, plan.token_ids[begin : begin + 1], row)
        return result

    def _append(
        self, result: ChunkLogprobs, logits: torch.Tensor, targets: Int32Array, row: int
    ) -> None:
        if not len(targets):
            return
        (ids,) = self._uploader.upload(targets.astype(np.int64))
        result.parts.append(token_logprobs(logits, ids))
        if count := self._starts[row][1]:
            result.tops.append(top_logprobs(logits, count))

    def _keep_last(self, plan: StepPlan, chunk: int, row: int, last: torch.Tensor) -> None:
        end = int(plan.chunk_starts[chunk] + plan.chunk_lens[chunk])
        if end < self._starts[row][0]:
            # a copy: a view would hold the whole slice
            self._last_logits[row] = last.clone()
