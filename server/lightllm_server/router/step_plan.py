"""What one step does: made by the scheduler, carried out by the engine (numpy int32, no torch).

The engine carries a plan out in this order, on one stream, plans in the order of `step`:

1. `starts`: `req_to_slots[row, :len(prefix_slots)] = prefix_slots`; per-row sampler state is set.
2. tokens: prefill chunks first (chunk after chunk), then one token per decode row. Token t is
written to
   KV slot `slots[t]`, and `req_to_slots[row, position] = slots[t]`. A decode row's input id is
   `last_ids[row]`, which lives on the device, so that a step can be launched before the ids of
   the one before are read.
3. `copies`: `req_to_slots[dst, :length] = req_to_slots[src, :length]` (children of an `n` > 1
request).
4. sampling: `last_ids[sample_rows[i]]` = a token sampled from the logits of token
`sample_token_index[i]`
   (several rows may share one logits row), drawn at `sample_positions[i]`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lightllm_server.messages import PromptLogprobs, SamplingParams, TopLogprob

__all__ = ["Int32Array", "RowCopy", "RowStart", "StepPlan", "StepResult"]

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStart:
    """A request-table row that begins (or begins again after a preemption) in this step.

    prefix_slots: [hit] slots of cached tokens at positions 0 … hit-1 (empty without a hit).
    choice: index among the request's `n`; folded with `sampling.seed` into the row's noise seed.
    token_ids: prompt and output tokens known so far, for the penalties; only set if the sampling
    needs it.
    prompt_len: how many of the row's tokens are the prompt.
    """

    row: int
    choice: int
    prefix_slots: Int32Array
    sampling: SamplingParams
    prompt_len: int
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RowCopy:
    src_row: int
    dst_row: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One step. P prefill tokens in C chunks, D decode rows, N sampled rows.

    token_ids: [P] ids of the chunks' tokens, concatenated.
    chunk_rows, chunk_starts, chunk_lens: [C]; chunk i covers positions start … start+len-1 of its
    row.
    decode_rows, decode_positions: [D]; the position of the input token (its row then holds
    position+1 tokens).
    slots: [P+D] destination slot of each token, in token order.
    sample_token_index: [N] index into the P+D tokens. sample_rows: [N].
    sample_positions: [N] sequence position that the sampled token takes (= noise position).
    sample_out_lens: [N] output tokens of the row before this sample (for min_new_tokens).
    prompt_logprob_chunks: [≤ C] indices of the chunks whose prompt logprobs are wanted.
    """

    step: int
    token_ids: Int32Array
    chunk_rows: Int32Array
    chunk_starts: Int32Array
    chunk_lens: Int32Array
    decode_rows: Int32Array
    decode_positions: Int32Array
    slots: Int32Array
    sample_token_index: Int32Array
    sample_rows: Int32Array
    sample_positions: Int32Array
    sample_out_lens: Int32Array
    prompt_logprob_chunks: Int32Array
    starts: tuple[RowStart, ...] = ()
    copies: tuple[RowCopy, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What came out of a step; index i belongs to `sample_rows[i]` of its plan.

    tops[i]: the best alternatives, only for rows that asked.
    prompt_logprobs: chunk index → (logprob of each of the chunk's tokens *given those before*,
    tops). For a chunk
    that starts at 0 the first entry is None. Chunk tokens are predicted by the logits of the
    token before them; the engine keeps
    a chunk's last logits row for the first token of the next chunk.
    """

    token_ids: list[int]
    logprobs: list[float]
    tops: dict[int, tuple[TopLogprob, ...]] = field(default_factory=dict)
    prompt_logprobs: dict[int, PromptLogprobs] = field(default_factory=dict)
