"""Noise, sampling filters, penalties and logprobs."""

from __future__ import annotations

import math

import pytest
import torch

from lightllm_kernels.logprobs import token_logprobs, top_logprobs
from lightllm_kernels.penalties import (
    add_logit_bias,
    apply_penalties,
    apply_penalties_reference,
    count_tokens,
)
from lightllm_kernels.sample_tokens import make_random_rows, sample_tokens
from lightllm_kernels.token_noise import gumbel_noise, gumbel_noise_reference


def random_rows(rows, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seeds=None, position=5):
    count = len(rows)
    return make_random_rows(
        rows,
        [temperature] * count,
        [top_k] * count,
        [top_p] * count,
        [min_p] * count,
        seeds or list(range(count)),
        [position] * count,
        device="cpu",
    )


def draw(logits, draws, **filters):
    """Counts of each id over `draws` seeds, for one row of logits."""
    rows = random_rows(list(range(draws)), **filters)
    ids = sample_tokens(logits.expand(draws, -1), rows)
    return torch.bincount(ids, minlength=logits.shape[-1])


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 123456789012345])
def test_noise_equals_its_reference_in_python_integers(seed, assert_close):
    ids = [0, 1, 2, 500, 31999, 200000]
    for position in (0, 1, 4095, 2**31 - 1):
        noise = gumbel_noise(
            torch.tensor([seed]), torch.tensor([position]), torch.tensor(ids, dtype=torch.int32)
        )
        expected = [gumbel_noise_reference(seed, position, i) for i in ids]
        assert_close(noise[0], torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_noise_is_gumbel_and_uncorrelated():
    seeds = torch.arange(200)
    ids = torch.arange(1000, dtype=torch.int32)
    noise = gumbel_noise(seeds, torch.full((200,), 17), ids)
    assert bool(noise.isfinite().all())
    assert abs(float(noise.mean()) - 0.5772) < 0.01
    assert abs(float(noise.var()) - math.pi**2 / 6) < 0.03
    uniform = (-(-noise).exp()).exp()
    counts = torch.histc(uniform, bins=20, min=0, max=1) / noise.numel()
    assert float((counts - 0.05).abs().max()) < 0.003
    shifted = gumbel_noise(seeds, torch.full((200,), 18), ids)
    for other in (noise.roll(1, 0), noise.roll(1, 1), shifted):
        assert abs(float(torch.corrcoef(torch.stack([noise.ravel(), other.ravel()]))[0, 1])) < 0.01


def test_greedy_is_argmax_and_the_lowest_id_wins_a_tie():
    logits = torch.randn(123, 1000)
    logits[7, [30, 400]] = 50.0
    ids = sample_tokens(logits, None)
    assert torch.equal(ids, logits.argmax(-1))
    assert ids[7] == 30


def test_a_token_depends_on_its_own_row_alone():
    logits = torch.randn(9, 500)
    seeds = [5, 6, 7, 8]
    together = sample_tokens(logits, random_rows([1, 3, 4, 8], seeds=seeds, top_p=0.9))
    for row, seed in zip([1, 3, 4, 8], seeds, strict=True):
        alone = sample_tokens(logits[row : row + 1], random_rows([0], seeds=[seed], top_p=0.9))
        assert alone[0] == together[row]
    greedy = [0, 2, 5, 6, 7]
    assert torch.equal(together[greedy], logits[greedy].argmax(-1))


def test_seed_and_position_change_the_draw():
    logits = torch.zeros(1, 5000)
    first = sample_tokens(logits, random_rows([0], seeds=[3]))
    assert torch.equal(first, sample_tokens(logits, random_rows([0], seeds=[3])))
    assert not torch.equal(first, sample_tokens(logits, random_rows([0], seeds=[4])))
    assert not torch.equal(first, sample_tokens(logits, random_rows([0], seeds=[3], position=6)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature):
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0, 0.5]])
    counts = draw(logits, 20000, temperature=temperature)
    expected = (logits[0] / temperature).softmax(-1)
    assert float((counts / 20000 - expected).abs().max()) < 0.012


def test_top_k():
    counts = draw(torch.tensor([[0.0, 3.0, 2.9, -1.0, 2.8, 1.0]]), 3000, top_k=3)
    assert counts.nonzero().flatten().tolist() == [1, 2, 4]


def test_top_k_keeps_ties():
    counts = draw(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), 3000, top_k=2)
    assert counts.nonzero().flatten().tolist() == [0, 1, 2]


def test_top_p_keeps_the_token_that_crosses():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, kept in ((0.4, 1), (0.6, 2), (0.81, 3), (0.99, 4), (1e-9, 1)):
        assert int((draw(logits, 4000, top_p=top_p) > 0).sum()) == kept


def test_top_p_acts_on_what_top_k_left():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # of the two best, the first alone holds 4/7 = 0.571
    assert int((draw(logits, 3000, top_k=2, top_p=0.55) > 0).sum()) == 1
    assert int((draw(logits, 3000, top_k=2, top_p=0.60) > 0).sum()) == 2


def test_min_p():
    logits = torch.tensor([[0.5, 0.26, 0.24, 0.0001]]).log()
    assert int((draw(logits, 3000, min_p=0.5) > 0).sum()) == 2
    assert int((draw(logits, 3000, min_p=1.0) > 0).sum()) == 1


def kept_by_sorting(scores, top_k, top_p, min_p):
    """The ids that a row's filters keep, by a full sort in double precision; and a doubtful one."""
    values, ids = scores.double().sort(descending=True)
    width = min(top_k, len(values)) if top_k > 0 else len(values)
    kept = int((values >= values[width - 1]).sum())
    if top_p < 1:
        mass = values[:kept].softmax(-1).cumsum(0)
        kept = min(int((mass < top_p).sum()) + 1, kept)
    if min_p > 0:
        kept = min(kept, int((values >= values[0] + math.log(min_p)).sum()))
    return set(ids[:kept].tolist()), set(ids[kept - 1 : kept + 1].tolist())


@pytest.mark.parametrize("vocab", [1, 63, 123, 3000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_a_draw_is_the_noisy_best_of_what_a_full_sort_keeps(vocab, spread):
    filters = [(0, 0.9, 0.0), (1, 1.0, 0.0), (40, 0.5, 0.0), (700, 0.999, 0.0), (0, 0.3, 0.0)]
    filters += [(5, 1.0, 0.1), (0, 1.0, 0.5), (vocab, 1.0, 0.0), (300, 0.8, 0.01)]
    logits = torch.randn(len(filters), vocab) * spread
    top_k, top_p, min_p = zip(*filters, strict=True)
    count = len(filters)
    rows = make_random_rows(
        range(count), [0.7] * count, top_k, top_p, min_p, range(count), [9] * count, device="cpu"
    )
    noise = gumbel_noise(rows.seeds, rows.positions, torch.arange(vocab, dtype=torch.int32))
    drawn = sample_tokens(logits, rows).tolist()
    for row, (k, p, m) in enumerate(filters):
        kept, doubtful = kept_by_sorting(logits[row] / 0.7, k, p, m)
        noisy = logits[row] / 0.7 + noise[row]
        expected = {
            max(ids, key=lambda i: float(noisy[i])) for ids in (kept, kept - doubtful) if ids
        }
        assert drawn[row] in expected | doubtful


def test_filters_alone_and_together_draw_the_same_token():
    logits = torch.randn(1, 3000) * 3
    for filters in ({"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.05}):
        alone = sample_tokens(logits, random_rows([0], seeds=[11], **filters))
        others = make_random_rows(
            [0, 1, 2],
            [1.0] * 3,
            [filters.get("top_k", 0), 0, 1000],
            [filters.get("top_p", 1.0), 0.999, 1.0],
            [filters.get("min_p", 0.0), 0.0, 0.0],
            [11, 12, 13],
            [5] * 3,
            device="cpu",
        )
        assert sample_tokens(logits.expand(3, -1), others)[0] == alone[0]


def test_rows_of_a_batch_keep_their_own_filters():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(4000, -1)
    rows = make_random_rows(
        list(range(4000)),
        [1.0] * 4000,
        [1, 2, 0, 0] * 1000,
        [1.0, 1.0, 0.7, 1.0] * 1000,
        [0.0, 0.0, 0.0, 0.9] * 1000,
        list(range(4000)),
        [0] * 4000,
        device="cpu",
    )
    ids = sample_tokens(logits, rows).view(1000, 4)
    assert [len(ids[:, i].unique()) for i in range(4)] == [1, 2, 2, 1]


def test_forbidden_tokens_are_never_drawn():
    logits = torch.zeros(1, 4)
    add_logit_bias(
        logits,
        torch.tensor([0, 0]),
        torch.tensor([1, 2]),
        torch.tensor([float("-inf"), float("-inf")]),
    )
    for filters in ({}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.1}):
        counts = draw(logits, 500, **filters)
        assert counts.nonzero().flatten().tolist() == [0, 3]


def test_logit_bias_adds_up():
    logits = torch.zeros(2, 4)
    add_logit_bias(
        logits,
        torch.tensor([0, 0, 1]),
        torch.tensor([3, 3, 1]),
        torch.tensor([2.0, 0.5, -100.0]),
    )
    assert logits.tolist() == [[0, 0, 0, 2.5], [0, -100.0, 0, 0]]


@pytest.mark.parametrize("vocab", [1, 7, 63, 123])
def test_penalties(vocab, assert_close):
    logits = torch.randn(5, vocab)
    expected = logits.clone()
    prompt_seen = torch.rand(4, vocab) < 0.3
    counts = torch.zeros(4, vocab, dtype=torch.int32)
    states = torch.tensor([3, 0, 2])
    for _ in range(4):
        count_tokens(counts, states, torch.randint(0, vocab, (3,)))
    assert int(counts.sum()) == 12
    arguments = (torch.tensor([1, 4, 0]), states, prompt_seen, counts)
    penalties = {
        "repetition": torch.tensor([1.3, 1.0, 0.8]),
        "presence": torch.tensor([0.0, 0.5, -0.5]),
        "frequency": torch.tensor([0.2, 0.0, 1.0]),
    }
    apply_penalties(logits, *arguments, **penalties)
    apply_penalties_reference(expected, *arguments, **penalties)
    assert_close(logits, expected)


def test_neutral_penalties_change_nothing():
    logits = torch.randn(1, 9)
    before = logits.clone()
    apply_penalties(
        logits,
        torch.tensor([0]),
        torch.tensor([0]),
        torch.ones(1, 9, dtype=torch.bool),
        torch.ones(1, 9, dtype=torch.int32),
        repetition=torch.ones(1),
        presence=torch.zeros(1),
        frequency=torch.zeros(1),
    )
    assert torch.equal(logits, before)


def test_logprobs(assert_close):
    logits = torch.randn(7, 123) * 3
    expected = logits.log_softmax(-1)
    ids = torch.randint(0, 123, (7,))
    assert_close(token_logprobs(logits, ids), expected[torch.arange(7), ids])
    values, best = top_logprobs(logits, 5)
    assert_close(values, expected.sort(descending=True).values[:, :5])
    assert torch.equal(best, logits.topk(5).indices)
    assert top_logprobs(logits, 500)[0].shape == (7, 123)
