"""An engine without a model, for tests of the scheduler: KV slots that remember what was written.

A slot holds the hash of all tokens up to its own. A row attends to the slots of its request-table
row, which must spell exactly its own tokens; the next token is a function of what is read there.
So any slot shared, freed or reused wrongly shows up as a failed check or as a wrong token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightllm_server.messages import PromptLogprobs, SamplingParams
from lightllm_server.router.step_plan import RowStart, StepPlan, StepResult

EOS_ID = 1


def fold(state: int, token: int) -> int:
    """The hash of a prefix and one token more."""
    return hash((state, int(token))) & 0x7FFFFFFF


def next_token(state: int, seed: int, choice: int, position: int, vocab_size: int) -> int:
    """The model: a token that depends on the whole prefix and the noise; often enough the eos."""
    return hash((state, seed, choice, position)) % vocab_size


def continuation(
    prompt: tuple[int, ...], sampling: SamplingParams, choice: int, *, limit: int, vocab_size: int
) -> list[int]:
    """What the engine must generate, computed without scheduler or slots."""
    state = 0
    for token in prompt:
        state = fold(state, token)
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else {EOS_ID})
    outputs: list[int] = []
    while len(outputs) < limit:
        position = len(prompt) + len(outputs)
        outputs.append(next_token(state, sampling.seed, choice, position, vocab_size))
        if outputs[-1] in stops:
            break
        state = fold(state, outputs[-1])
    return outputs


def prompt_logprobs(tokens: list[int]) -> list[float | None]:
    """What the engine reports for a prompt."""
    values: list[float | None] = []
    state = 0
    for i, token in enumerate(tokens):
        state = fold(state, token)
        values.append(-float(state % 1000) if i else None)
    return values


@dataclass
class Row:
    start: RowStart
    tokens: list[int]


class ScheduledEngine:
    """Carries plans out in the order given, as on one stream."""

    def __init__(self, num_slots: int, max_rows: int, max_len: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.table = np.full((max_rows, max_len), -1, dtype=np.int64)
        # slot → (hash of the prefix, token)
        self.kv: list[tuple[int, int]] = [(-1, -1)] * num_slots
        self.rows: dict[int, Row] = {}
        self.last_ids = np.full(max_rows, -1, dtype=np.int64)

    def run(self, plan: StepPlan) -> StepResult:
        assert len(set(plan.slots.tolist())) == plan.num_tokens, "a slot is written twice"
        for start in plan.starts:
            self._start(start)
        tokens = self._place(plan)
        states = [self._attend(row, end) for row, end in tokens]
        for copy in plan.copies:
            source, child = self.rows[copy.src_row], self.rows[copy.dst_row]
            self.table[copy.dst_row, : copy.length] = self.table[copy.src_row, : copy.length]
            child.tokens = source.tokens[: copy.length]
        return self._sample(plan, states)

    def _start(self, start: RowStart) -> None:
        hit = len(start.prefix_slots)
        self.table[start.row] = -1
        self.table[start.row, :hit] = start.prefix_slots
        tokens = [self.kv[slot][1] for slot in start.prefix_slots]
        self.rows[start.row] = Row(start, tokens)

    def _place(self, plan: StepPlan) -> list[tuple[int, int]]:
        """Write all tokens' KV; returns (row, length) per token."""
        placed: list[tuple[int, int, int]] = []
        at = 0
        chunks = (plan.chunk_rows, plan.chunk_starts, plan.chunk_lens)
        for row, start, length in zip(*(array.tolist() for array in chunks), strict=True):
            for i in range(length):
                placed.append((row, start + i, int(plan.token_ids[at + i])))
            at += length
        for row, position in zip(plan.decode_rows, plan.decode_positions, strict=True):
            placed.append((int(row), int(position), int(self.last_ids[row])))
        for (row, position, token), slot in zip(placed, plan.slots.tolist(), strict=True):
            known = self.rows[row].tokens
            assert position == len(known), f"row {row}: position {position} after {len(known)}"
            before = self.kv[self.table[row, position - 1]][0] if position else 0
            known.append(token)
            self.table[row, position] = slot
            self.kv[slot] = (fold(before, token), token)
        return [(row, position + 1) for row, position, _ in placed]

    def _attend(self, row: int, length: int) -> int:
        """Read the row's slots: they must hold its own tokens, each after its own prefix."""
        state = 0
        for position in range(length):
            slot = int(self.table[row, position])
            token = self.rows[row].tokens[position]
            state = fold(state, token)
            assert slot >= 0, f"row {row} reads position {position}, which it never got"
            assert self.kv[slot] == (state, token), f"row {row} reads another's slot {slot}"
        return state

    def _sample(self, plan: StepPlan, states: list[int]) -> StepResult:
        ids = []
        for i, row in enumerate(plan.sample_rows.tolist()):
            index, position = int(plan.sample_token_index[i]), int(plan.sample_positions[i])
            start = self.rows[row].start
            assert position == len(self.rows[row].tokens), (position, len(self.rows[row].tokens))
            assert plan.sample_out_lens[i] == position - start.prompt_len, position
            token = next_token(
                states[index], start.sampling.seed, start.choice, position, self.vocab_size
            )
            self.last_ids[row] = token
            ids.append(token)
        logprobs = {}
        for chunk in plan.prompt_logprob_chunks.tolist():
            row, start_at = int(plan.chunk_rows[chunk]), int(plan.chunk_starts[chunk])
            end = start_at + int(plan.chunk_lens[chunk])
            values = prompt_logprobs(self.rows[row].tokens[:end])[start_at:]
            logprobs[chunk] = PromptLogprobs(tuple(values))
        return StepResult(token_ids=ids, logprobs=[-0.5] * len(ids), prompt_logprobs=logprobs)
