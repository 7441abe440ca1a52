"""The Triton kernels of sampling against the CPU form on equal input: in the interpreter, or
compiled where there is a GPU.
"""

from __future__ import annotations

import math

import pytest
import torch

from lightllm_kernels.logprobs import token_logprobs, token_logprobs_reference, top_logprobs
from lightllm_kernels.penalties import (
    add_logit_bias,
    apply_penalties,
    apply_penalties_reference,
    count_tokens,
)
from lightllm_kernels.sample_tokens import (
    RandomRows,
    make_random_rows,
    sample_tokens,
    sample_tokens_reference,
)
from lightllm_kernels.score_limits import score_limits, score_limits_reference
from lightllm_kernels.token_noise import gumbel_noise
from lightllm_kernels.triton_launch import triton_everywhere

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = (1, 7, 63, 123, 1000)
INF = float("inf")


def on_device(argument):
    if isinstance(argument, torch.Tensor):
        return argument.to(DEVICE)
    if isinstance(argument, RandomRows):
        tensors = ("rows", "temperature", "top_k", "top_p", "min_p", "seeds", "positions")
        fields = {name: getattr(argument, name) for name in RandomRows.__slots__}
        return RandomRows(**fields | {name: fields[name].to(DEVICE) for name in tensors})
    return argument


def by_triton(op, *arguments, **options):
    """The op's result by its Triton kernel, on the CPU."""
    with triton_everywhere():
        result = op(*map(on_device, arguments), **{k: on_device(v) for k, v in options.items()})
    return result.cpu() if isinstance(result, torch.Tensor) else result


def make_rows(filters, *, rows=None, temperature=0.7, seed=0):
    """filters: (top_k, top_p, min_p) of each random row"""
    top_k, top_p, min_p = zip(*filters, strict=True)
    count = len(filters)
    return make_random_rows(
        range(count) if rows is None else rows,
        [temperature] * count,
        top_k,
        top_p,
        min_p,
        [seed + 31 * i for i in range(count)],
        [9 + i for i in range(count)],
        device="cpu",
    )


def limits_of(logits, rows):
    """What `score_limits` finds, [K]."""
    names = ("temperature", "top_k", "top_p", "min_p")
    return by_triton(score_limits, logits, rows.rows, **{n: getattr(rows, n) for n in names})


def expected_limits(logits, rows):
    """The reference's limits, [K]; and the next lower score, [K], where rounding of the mass may
    end as well.
    """
    names = ("temperature", "top_k", "top_p", "min_p")
    limits = score_limits_reference(logits, rows.rows, **{n: getattr(rows, n) for n in names})
    scores = logits[rows.rows] / rows.temperature.unsqueeze(1)
    below = scores.masked_fill(scores >= limits.unsqueeze(1), -INF).amax(1)
    return limits, torch.where(below == -INF, limits, below)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 123456789012345])
def test_noise(seed, assert_close):
    seeds, positions = torch.tensor([seed, 7]), torch.tensor([0, 2**31 - 1])
    ids = torch.cat([torch.arange(1500), torch.tensor([31999, 200000, 2**31 - 1])]).int()
    # a few units in the last place of a value between 1 and 16
    tolerances = {"rtol": 3e-7, "atol": 5e-7}
    expected = gumbel_noise(seeds, positions, ids)
    assert_close(by_triton(gumbel_noise, seeds, positions, ids), expected, **tolerances)
    chosen = torch.stack([ids[:5], ids[5:10]])
    actual = by_triton(gumbel_noise, seeds, positions.int(), chosen)
    assert_close(actual, gumbel_noise(seeds, positions, chosen), **tolerances)


def test_large_noise_keeps_its_digits(assert_close):
    # the uniform numbers nearest 0 make the noise that decides; 2 million of them hold some
    ids = torch.arange(1 << 21, dtype=torch.int32)
    seeds, positions = torch.tensor([5]), torch.tensor([1])
    expected = gumbel_noise(seeds, positions, ids)
    largest = expected[0].topk(50).indices.int()
    assert float(expected.max()) > 13
    actual = by_triton(gumbel_noise, seeds, positions, largest)
    assert_close(actual[0], expected[0, largest.long()], rtol=3e-7, atol=5e-7)


@pytest.mark.parametrize("vocab", [*SIZES, 5000])
def test_greedy(vocab):
    logits = torch.randn(9, vocab + 5)[:, :vocab]
    assert torch.equal(by_triton(sample_tokens, logits, None), logits.argmax(-1))


def test_of_equal_logits_the_lowest_id_wins():
    logits = torch.zeros(5, 5000)
    logits[1, [30, 4000]] = 50.0
    logits[2] = -INF
    logits[3, :10] = -0.0
    logits[4] = -1.0
    logits[4, 2100] = -0.0
    logits[4, 2101] = 0.0
    assert by_triton(sample_tokens, logits, None).tolist() == [0, 30, 0, 0, 2100]


# of numpy in the interpreter
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_row_of_nan_gives_an_id_all_the_same():
    logits = torch.zeros(4, 300)
    logits[0] = float("nan")
    logits[1] = -float("nan")
    logits[2, 200] = INF
    logits[3, 17] = float("nan")
    assert by_triton(sample_tokens, logits, None).tolist() == [0, 0, 200, 17]
    drawn = by_triton(sample_tokens, logits, make_rows([(3, 0.5, 0.1)] * 4))
    assert bool(((drawn >= 0) & (drawn < 300)).all())


FILTERS = [
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (5, 1.0, 0.0),
    (40, 0.5, 0.0),
    (700, 0.999, 0.0),
    (0, 0.3, 0.0),
    (0, 0.95, 0.0),
    (0, 1e-9, 0.0),
    (0, 1.0, 1.0),
    (0, 1.0, 0.1),
    (300, 0.8, 0.01),
]


@pytest.mark.parametrize("vocab", [*SIZES, 5000])
@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_draws_equal_those_of_the_reference_and_of_the_cpu_form(vocab, spread):
    logits = torch.randn(len(FILTERS) + 2, vocab) * spread
    # greedy rows between them, in no order
    rows = make_rows(FILTERS, rows=torch.randperm(len(logits))[: len(FILTERS)].tolist())
    expected = sample_tokens_reference(logits, rows)
    assert torch.equal(by_triton(sample_tokens, logits, rows), expected)
    assert torch.equal(sample_tokens(logits, rows), expected)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 50.0])
def test_draws_without_filters(temperature):
    logits = torch.randn(9, 2500) * 4
    rows = make_rows([(0, 1.0, 0.0)] * 7, rows=[8, 0, 3, 4, 5, 1, 2], temperature=temperature)
    assert torch.equal(by_triton(sample_tokens, logits, rows), sample_tokens(logits, rows))


def test_draws_of_many_random_rows():
    # more than one program compares its row with at once
    logits = torch.randn(150, 40)
    rows = make_rows([(0, 1.0, 0.0)] * 140, rows=torch.randperm(150)[:140].tolist())
    assert torch.equal(by_triton(sample_tokens, logits, rows), sample_tokens(logits, rows))


@pytest.mark.parametrize("vocab", [1, 2, 123, 5000])
@pytest.mark.parametrize("kind", ["normal", "narrow", "ties", "equal", "masked", "wide"])
def test_limits_are_those_of_a_sort(kind, vocab):
    logits = torch.randn(len(FILTERS), vocab) * 3
    if kind == "narrow":
        logits = logits * 1e-3 + 100
    elif kind == "ties":
        logits = logits.bfloat16().float()
    elif kind == "equal":
        logits = torch.full_like(logits, -2.5)
    elif kind == "masked":
        logits[:, 1::2] = -INF
    elif kind == "wide":
        logits = logits**5
    rows = make_rows(FILTERS)
    found = limits_of(logits, rows)
    exact, lower = expected_limits(logits, rows)
    # of the top-k rows bit for bit; a mass may round to the other side of p
    same = found == exact
    near = (rows.top_p < 1) & (found == lower)
    relative = (rows.min_p > 0) & ((found - exact).abs() <= 1e-6 * exact.abs().clamp(min=1))
    assert bool((same | near | relative).all()), (found, exact)
    assert int((~same & near & (lower != exact)).sum()) <= 1


@pytest.mark.parametrize(
    "filters", [(50, 1.0, 0.0), (0, 0.9, 0.0), (50, 0.9, 0.0), (0, 0.9999, 0.0)]
)
def test_a_row_of_32000(filters):
    logits = torch.randn(2, 32000) * 2.5
    rows = make_rows([filters, filters], temperature=1.3)
    exact, lower = expected_limits(logits, rows)
    found = limits_of(logits, rows)
    assert bool(((found == exact) | ((rows.top_p < 1) & (found == lower))).all())
    assert torch.equal(by_triton(sample_tokens, logits, rows), sample_tokens(logits, rows))


def test_top_k_keeps_ties_and_top_p_all_of_the_last_value():
    logits = torch.tensor([[1.0, 2.0, 1.0, 0.0], [2.0, 1.0, 1.0, -3.0]])
    rows = make_rows([(2, 1.0, 0.0), (0, 0.7, 0.0)], temperature=1.0)
    assert limits_of(logits, rows).tolist() == [1.0, 1.0]


def test_a_token_depends_on_its_own_row_alone():
    logits = torch.randn(9, 3000)
    filters = [(40, 0.9, 0.02), (0, 1.0, 0.0), (0, 0.5, 0.0)]
    together = by_triton(sample_tokens, logits, make_rows(filters, rows=[8, 2, 5]))
    for i, (row, kept) in enumerate(zip([8, 2, 5], filters, strict=True)):
        alone = make_random_rows([0], [0.7], *([f] for f in kept), [31 * i], [9 + i], device="cpu")
        assert by_triton(sample_tokens, logits[row : row + 1], alone)[0] == together[row]


def test_logits_that_are_not_float32_are_refused():
    with pytest.raises(ValueError, match=r"logits must be float32, got torch\.float16"):
        by_triton(sample_tokens, torch.zeros(1, 4).half(), None)


@pytest.mark.parametrize("vocab", [1, 7, 63, 123, 2500])
def test_penalties(vocab, assert_close):
    logits = torch.randn(5, vocab + 3)[:, :vocab]
    prompt_seen = torch.rand(4, vocab) < 0.3
    counts = torch.randint(-3, 4, (4, vocab), dtype=torch.int32).clamp_(min=0)
    arguments = (torch.tensor([1, 4, 0]), torch.tensor([3, 0, 2]), prompt_seen, counts)
    penalties = {
        "repetition": torch.tensor([1.3, 1.0, 0.8]),
        "presence": torch.tensor([0.0, 0.5, -0.5]),
        "frequency": torch.tensor([0.2, 0.0, 1.0]),
    }
    expected, actual = logits.clone(), on_device(logits.clone())
    apply_penalties_reference(expected, *arguments, **penalties)
    by_triton(apply_penalties, actual, *arguments, **penalties)
    assert_close(actual.cpu(), expected)
    untouched = ~prompt_seen[3] & (counts[3] == 0)
    assert torch.equal(actual.cpu()[1, untouched], logits[1, untouched])


@pytest.mark.parametrize("size", [1, 7, 300])
def test_counts_and_bias_add_up_where_entries_repeat(size, assert_close):
    rows, ids = torch.randint(0, 3, (size,)), torch.randint(0, 9, (size,))
    table = on_device(torch.ones(3, 9, dtype=torch.int32))
    by_triton(count_tokens, table, rows, ids)
    assert torch.equal(table.cpu().flatten() - 1, torch.bincount(rows * 9 + ids, minlength=27))
    logits, values = torch.randn(3, 9), torch.randn(size)
    actual = on_device(logits.clone())
    by_triton(add_logit_bias, actual, rows, ids, values)
    expected = logits.double().index_put((rows, ids), values.double(), accumulate=True)
    assert_close(actual.cpu(), expected.float(), atol=1e-5)


def test_forbidden_tokens_are_never_drawn():
    logits = on_device(torch.zeros(40, 4))
    rows, ids = torch.arange(40).repeat_interleave(2), torch.tensor([1, 2]).repeat(40)
    by_triton(add_logit_bias, logits, rows, ids, torch.full((80,), -INF))
    filters = [(0, 1.0, 0.0), (0, 0.9, 0.0), (3, 1.0, 0.0), (0, 1.0, 0.1)] * 10
    drawn = by_triton(sample_tokens, logits, make_rows(filters))
    assert drawn.unique().tolist() == [0, 3]


@pytest.mark.parametrize("vocab", [1, 7, 123, 5000])
def test_logprobs(vocab, assert_close):
    logits = torch.randn(7, vocab + 1)[:, :vocab] * 3
    logits[1, : vocab // 2] = -INF
    logits[2] += 500
    ids = logits.argmax(-1)
    expected = token_logprobs_reference(logits, ids)
    tolerances = {"rtol": 1e-5, "atol": 1e-5}
    actual = by_triton(token_logprobs, logits, ids)
    assert_close(actual[[0, 1, 3, 4, 5, 6]], expected[[0, 1, 3, 4, 5, 6]], **tolerances)
    # beside a logit of 500 the difference has 4 decimals in float32
    assert_close(actual[2], expected[2], atol=2e-4)
    with triton_everywhere():
        values, best = top_logprobs(on_device(logits[3:]), 5)
    assert torch.equal(best.cpu(), logits[3:].topk(min(5, vocab)).indices)
    assert_close(values.cpu(), logits[3:].log_softmax(-1).topk(min(5, vocab)).values, **tolerances)


# of numpy in the interpreter
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_logprob_of_a_forbidden_row_and_token():
    logits = torch.full((2, 5000), -INF)
    logits[1, 4999] = 3.0
    actual = by_triton(token_logprobs, logits, torch.tensor([0, 4999]))
    assert math.isnan(float(actual[0]))
    assert float(actual[1]) == 0.0
    assert float(by_triton(token_logprobs, logits, torch.tensor([0, 0]))[1]) == -INF
