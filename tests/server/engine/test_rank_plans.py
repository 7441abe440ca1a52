"""A plan survives the way to the other ranks."""

from __future__ import annotations

import numpy as np

from lightllm_server.engine.rank_plans import from_message, to_message
from lightllm_server.messages import Codec, RankToRank, SamplingParams
from lightllm_server.router.step_plan import RowCopy, RowStart, StepPlan

ARRAYS = (
    "token_ids",
    "chunk_rows",
    "chunk_starts",
    "chunk_lens",
    "decode_rows",
    "decode_positions",
    "slots",
    "sample_token_index",
    "sample_rows",
    "prompt_logprob_chunks",
)


def array(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def round_trip(plan: StepPlan) -> StepPlan:
    codec: Codec[RankToRank] = Codec(RankToRank)
    return from_message(codec.decode(codec.encode(to_message(plan))))


def plan(starts: tuple[RowStart, ...], copies: tuple[RowCopy, ...]) -> StepPlan:
    values = {name: array(*range(i, 2 * i)) for i, name in enumerate(ARRAYS)}
    return StepPlan(
        step=3,
        sample_positions=array(1),
        sample_out_lens=array(2),
        starts=starts,
        copies=copies,
        **values,
    )


def test_round_trip() -> None:
    prefixes = [array(), array(5, 6, 2**31 - 1), array(9)]
    starts = tuple(
        RowStart(row=r, choice=1, prefix_slots=p, sampling=SamplingParams(seed=4), prompt_len=8)
        for r, p in enumerate(prefixes)
    )
    copies = (RowCopy(1, 2, 30), RowCopy(1, 3, 30))
    sent = plan(starts, copies)
    got = round_trip(sent)
    for name in ARRAYS:
        assert np.array_equal(getattr(got, name), getattr(sent, name)), name
        assert getattr(got, name).flags.writeable
    assert [start.row for start in got.starts] == [0, 1, 2]
    for start, prefix in zip(got.starts, prefixes, strict=True):
        assert np.array_equal(start.prefix_slots, prefix)
    assert got.copies == copies


def test_without_starts_and_copies() -> None:
    got = round_trip(plan((), ()))
    assert (got.starts, got.copies, got.step) == ((), (), 3)
