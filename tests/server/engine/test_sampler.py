"""Row state, masks, bias, penalties and seeds; the maths of the ops is tested in tests/kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightllm_server.engine.sampler import Sampler, noise_seed
from lightllm_server.messages import SamplingParams
from lightllm_server.router.step_plan import RowStart, StepPlan

VOCAB = 50
EOS = (7, 8)
EMPTY = np.zeros(0, np.int32)


@pytest.fixture
def sampler() -> Sampler:
    return Sampler(num_rows=8, vocab_size=VOCAB, eos_ids=EOS, device=torch.device("cpu"))


def start(
    sampler: Sampler,
    row: int,
    *,
    choice: int = 0,
    tokens: tuple[int, ...] = (),
    prompt_len: int = 0,
    **sampling: Any,
) -> None:
    sampler.start(
        RowStart(
            row=row,
            choice=choice,
            prefix_slots=EMPTY,
            sampling=SamplingParams(**sampling),
            prompt_len=prompt_len,
            token_ids=tokens,
        )
    )


def plan(rows: list[int], positions: list[int] | None = None, out_len: int = 0) -> StepPlan:
    array = np.array(rows, np.int32)
    return StepPlan(
        step=1,
        token_ids=EMPTY,
        chunk_rows=EMPTY,
        chunk_starts=EMPTY,
        chunk_lens=EMPTY,
        decode_rows=array,
        decode_positions=array,
        slots=array,
        sample_token_index=np.arange(len(rows), dtype=np.int32),
        sample_rows=array,
        sample_positions=np.array(positions or [10] * len(rows), np.int32),
        sample_out_lens=np.full(len(rows), out_len, np.int32),
        prompt_logprob_chunks=EMPTY,
    )


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def draw(sampler: Sampler, raw: torch.Tensor, *args: Any, **kwargs: Any) -> list[int]:
    ids: list[int] = sampler.sample(raw, plan(*args, **kwargs)).ids.tolist()
    return ids


def test_greedy_and_its_logprob(sampler: Sampler) -> None:
    start(sampler, 2)
    raw = logits(1)
    sampled = sampler.sample(raw, plan([2]))
    assert sampled.ids.tolist() == raw.argmax(-1).tolist()
    assert sampled.logprobs.tolist() == pytest.approx(raw.log_softmax(-1).max(-1).values.tolist())
    assert sampled.tops() == {}


def test_min_new_tokens_masks_what_would_end_the_row(sampler: Sampler) -> None:
    raw = torch.zeros(1, VOCAB)
    raw[0, [7, 8, 9, 3]] = torch.tensor([9.0, 8.0, 7.0, 1.0])
    start(sampler, 0, min_new_tokens=2, stop_token_ids=(9,))
    assert draw(sampler, raw, [0], out_len=1) == [3]
    assert draw(sampler, raw, [0], out_len=2) == [7]
    # an eos that ends nothing is not masked, a stop id still is
    start(sampler, 0, min_new_tokens=2, stop_token_ids=(7,), ignore_eos=True)
    assert draw(sampler, raw, [0], out_len=1) == [8]


def test_logit_bias_and_that_a_new_start_forgets_it(sampler: Sampler) -> None:
    raw = logits(2)
    start(sampler, 0, logit_bias={4: 100.0, 5: -100.0})
    start(sampler, 1)
    best = raw.argmax(-1).tolist()
    assert draw(sampler, raw.clone(), [0, 1]) == [4, best[1]]
    start(sampler, 0)
    assert draw(sampler, raw.clone(), [0, 1]) == best


def test_penalties_follow_prompt_and_output(sampler: Sampler) -> None:
    raw = torch.zeros(2, VOCAB)
    raw[:, 10], raw[:, 11], raw[:, 12] = 4.0, 3.0, 2.0
    # 10 is in the prompt, which only the repetition penalty counts
    start(sampler, 0, tokens=(10,), prompt_len=1, repetition_penalty=10.0)
    start(sampler, 1, tokens=(10,), prompt_len=1, presence_penalty=1.5)
    assert draw(sampler, raw, [0, 1]) == [11, 10]
    # both have now put out what they drew
    assert draw(sampler, raw, [0, 1]) == [12, 11]
    # a row that begins again after a preemption counts its own output
    start(sampler, 1, tokens=(10, 10, 11), prompt_len=1, presence_penalty=1.5)
    assert draw(sampler, raw[:1], [1]) == [10]
    start(sampler, 1, tokens=(10, 10, 10, 11), prompt_len=1, frequency_penalty=1.5)
    assert draw(sampler, raw[:1], [1]) == [12]


def test_many_penalised_rows_keep_apart() -> None:
    sampler = Sampler(num_rows=40, vocab_size=VOCAB, eos_ids=EOS, device=torch.device("cpu"))
    raw = torch.zeros(40, VOCAB)
    raw[:, 1] = 0.5
    for row in range(40):
        start(sampler, row, frequency_penalty=1.0)
        assert draw(sampler, raw[:1], [row]) == [1]
    start(sampler, 3, frequency_penalty=1.0)
    assert draw(sampler, raw, list(range(40))) == [1 if row == 3 else 0 for row in range(40)]


def test_tops_only_for_rows_that_asked(sampler: Sampler) -> None:
    raw = logits(3)
    start(sampler, 0, logprobs=3)
    start(sampler, 1)
    start(sampler, 2, logprobs=1)
    tops = sampler.sample(raw, plan([0, 1, 2])).tops()
    best = raw.log_softmax(-1).topk(3)
    assert set(tops) == {0, 2}
    assert [top.token_id for top in tops[0]] == best.indices[0].tolist()
    assert [top.logprob for top in tops[0]] == pytest.approx(best.values[0].tolist())
    assert [top.token_id for top in tops[2]] == best.indices[2, :1].tolist()


def test_noise_depends_on_seed_choice_and_position_alone(sampler: Sampler) -> None:
    raw = logits(1)
    for row, (seed, choice) in enumerate([(5, 0), (5, 1), (6, 0), (5, 0)]):
        start(sampler, row, choice=choice, seed=seed, temperature=2.0)

    def stream(row: int) -> list[int]:
        return [draw(sampler, raw.clone(), [row], [position])[0] for position in range(30)]

    alone = [stream(row) for row in range(4)]
    assert alone[0] == alone[3]
    assert len({tuple(ids) for ids in alone}) == 3
    # the same rows in one batch, in another order, beside a greedy row
    start(sampler, 4)
    order = [4, 2, 0, 1]
    for position in range(30):
        got = draw(sampler, raw.expand(4, -1).clone(), order, [position] * 4)
        assert got[1:] == [alone[row][position] for row in order[1:]]


def test_seeds_of_choices_are_distinct_and_signed() -> None:
    assert noise_seed(12, 0) == 12
    seeds = {noise_seed(seed, choice) for seed in (0, 1, 2**63 - 1) for choice in range(100)}
    assert len(seeds) == 300
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


def test_sampled_frequencies_follow_the_probabilities(sampler: Sampler) -> None:
    raw = torch.full((1, VOCAB), -20.0)
    raw[0, [1, 2, 3]] = torch.tensor([0.5, 0.3, 0.2]).log()
    start(sampler, 0, temperature=1.0, seed=1)
    counts = np.zeros(VOCAB)
    many = 4000
    for begin in range(0, many, 500):
        ids = draw(
            sampler,
            raw.expand(500, -1).clone(),
            [0] * 500,
            list(range(begin + 1, begin + 501)),
        )
        counts += np.bincount(ids, minlength=VOCAB)
    # three standard deviations of a share of one half among 4000
    assert counts[[1, 2, 3]] / many == pytest.approx([0.5, 0.3, 0.2], abs=0.024)


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-38, 1e-45, 5e-324])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_next_to_no_temperature_is_greedy(
    sampler: Sampler, temperature: float, filters: dict[str, Any]
) -> None:
    """Logits divided by it leave float32: infinities among which noise would choose."""
    raw = logits(20) * 10
    for row in range(8):
        start(sampler, row, temperature=temperature, seed=row, **filters)
    assert draw(sampler, raw[:8].clone(), list(range(8))) == raw[:8].argmax(-1).tolist()


def test_a_low_temperature_still_draws(sampler: Sampler) -> None:
    raw = torch.zeros(1, VOCAB)
    drawn = set()
    for seed in range(20):
        start(sampler, 0, temperature=1e-5, seed=seed)
        drawn |= set(draw(sampler, raw.clone(), [0]))
    assert len(drawn) > 1
