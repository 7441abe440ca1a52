"""Steps made up to load, measure and warm the engine: every slot is the pool's padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightllm_server.engine.shard import ModelShard
from lightllm_server.messages import SamplingParams
from lightllm_server.router.step_plan import RowStart, StepPlan

__all__ = ["PROBE_CONTEXT", "largest_plan", "most_probed", "probe_plan", "warm_plans"]

PROBE_CONTEXT = 2048

# chunks: odd, a multiple of 16, and more than one block; decode rows: in one part, and in several
_WARM_STEPS = (
    (7, 16, SamplingParams(temperature=0.0)),
    (
        16,
        PROBE_CONTEXT,
        SamplingParams(temperature=1.0, repetition_penalty=1.1, logit_bias={0: 0.0}),
    ),
    (240, 16, SamplingParams(temperature=1.0, top_k=20, top_p=0.9, min_p=0.01, logprobs=2)),
)
_EVERYTHING = SamplingParams(
    temperature=1.0,
    top_k=20,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias={0: 0.0},
    logprobs=20,
)


def most_probed(shard: ModelShard) -> int:
    """The most tokens that the chunks of a `probe_plan` may have."""
    return shard.num_rows * _longest_chunk(shard)


def probe_plan(
    shard: ModelShard,
    num_tokens: int,
    sampling: SamplingParams | None = None,
    *,
    decode_lens: Sequence[int] = (),
) -> StepPlan:
    """Prefill chunks that end long contexts, then decode rows; the last token of each is sampled.

    num_tokens: of the chunks, at most `most_probed`; decode_lens: tokens that each decode row then
    has, for as many rows as the chunks leave.
    """
    context = min(shard.max_length, PROBE_CONTEXT)
    longest = _longest_chunk(shard)
    lens = [longest] * (num_tokens // longest)
    if num_tokens % longest:
        lens.append(num_tokens % longest)
    assert len(lens) + len(decode_lens) <= shard.num_rows, (num_tokens, len(decode_lens))
    chunk_starts = [context - length for length in lens]
    ends = [context] * len(lens) + list(decode_lens)
    rows = np.arange(len(ends), dtype=np.int32)
    decode_positions = np.array(decode_lens, np.int32) - 1
    last_tokens = np.concatenate([np.cumsum(lens), num_tokens + np.arange(len(decode_lens))])
    last_tokens[: len(lens)] -= 1
    return StepPlan(
        step=0,
        token_ids=np.zeros(num_tokens, np.int32),
        chunk_rows=rows[: len(lens)],
        chunk_starts=np.array(chunk_starts, np.int32),
        chunk_lens=np.array(lens, np.int32),
        decode_rows=rows[len(lens) :],
        decode_positions=decode_positions,
        slots=np.full(num_tokens + len(decode_lens), shard.num_slots, np.int32),
        sample_token_index=last_tokens.astype(np.int32),
        sample_rows=rows,
        sample_positions=np.array(ends, np.int32),
        sample_out_lens=np.zeros(len(ends), np.int32),
        prompt_logprob_chunks=np.zeros(0, np.int32),
        starts=tuple(
            RowStart(
                row=row,
                choice=0,
                prefix_slots=np.full(prefix, shard.num_slots, np.int32),
                sampling=sampling or SamplingParams(),
                prompt_len=end,
            )
            for row, (prefix, end) in enumerate(
                zip([*chunk_starts, *decode_positions.tolist()], ends, strict=True)
            )
        ),
    )


def largest_plan(shard: ModelShard, num_tokens: int) -> StepPlan:
    """A step of so many tokens that takes the most memory: every row is in it and is sampled with
    all that a request may ask for.

    One decode row is as long as any may become: it sets the number of splits, and so the scratch
    memory, of all.
    """
    num_tokens = min(num_tokens, most_probed(shard))
    num_chunks = -(-num_tokens // _longest_chunk(shard))
    decodes = max(0, min(shard.num_rows, num_tokens) - num_chunks)
    lens = [shard.max_length, *[1] * decodes][:decodes]
    return probe_plan(shard, num_tokens - decodes, _EVERYTHING, decode_lens=lens)


def warm_plans(shard: ModelShard) -> Iterator[StepPlan]:
    """Steps that between them start every kernel that serving may start, in each of its forms."""
    longest = min(shard.max_length, PROBE_CONTEXT)
    for num_tokens, decode_len, sampling in _WARM_STEPS:
        tokens, lens = min(num_tokens, _longest_chunk(shard)), (min(decode_len, longest),)
        if shard.num_rows > 1:
            yield probe_plan(shard, tokens, sampling, decode_lens=lens)
        else:
            yield probe_plan(shard, tokens, sampling)
            yield probe_plan(shard, 0, sampling, decode_lens=lens)


def _longest_chunk(shard: ModelShard) -> int:
    return max(1, min(shard.max_length, PROBE_CONTEXT) // 2)
