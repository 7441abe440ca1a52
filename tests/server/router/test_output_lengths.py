"""The history of output lengths against a list that is sorted anew each time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightllm_server.router.output_lengths import OutputLengths, quantiles


def history(lengths, window=1000):
    kept = OutputLengths(window)
    for length in lengths:
        kept.add(length)
    return kept


def draw(kept, out_len, share):
    """The length drawn, or None where none is known."""
    drawn, known = kept.draw(np.array([out_len]), np.array([share]))
    return int(drawn[0]) if known[0] else None


@given(
    lengths=st.lists(st.integers(1, 20), max_size=60),
    window=st.integers(1, 12),
    out_len=st.integers(0, 22),
    share=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_a_quantile_of_the_longer_ones_in_the_window(lengths, window, out_len, share):
    kept = history(lengths, window)
    recent = lengths[-window:]
    assert kept.longest == max(recent, default=0)
    longer = sorted(length for length in recent if length > out_len)
    want = longer[int(share * len(longer))] if longer else None
    assert draw(kept, out_len, share) == want


def test_nothing_is_drawn_from_an_empty_history():
    assert draw(history([]), 0, 0.5) is None


def test_a_draw_is_longer_than_the_output_so_far():
    kept = history([10, 20, 30, 40])
    assert [draw(kept, 0, share) for share in (0, 0.25, 0.5, 0.99)] == [10, 20, 30, 40]
    assert [draw(kept, 20, share) for share in (0, 0.49, 0.5, 0.99)] == [30, 30, 40, 40]
    assert draw(kept, 40, 0) is None


def test_a_draw_never_becomes_shorter_while_the_output_grows():
    rng = np.random.default_rng(0)
    kept = history(rng.integers(1, 300, 200).tolist())
    for share in rng.random(20).tolist():
        drawn = [draw(kept, out_len, share) for out_len in range(250)]
        assert drawn == sorted(drawn)


def test_draws_follow_the_distribution_of_what_is_longer():
    rng = np.random.default_rng(1)
    lengths = rng.lognormal(5, 0.7, 1000).astype(np.int64)
    kept = history(lengths.tolist())
    shares = quantiles(np.arange(20_000) << 16, seed=0)
    drawn, known = kept.draw(np.full(20_000, 200), shares)
    assert known.all()
    assert drawn.mean() == pytest.approx(lengths[lengths > 200].mean(), rel=0.02)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    rows=st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 59), st.integers(1, 90), st.integers(0, 4)),
        min_size=1,
        max_size=8,
    ),
)
def test_survivors_are_counted_over_all_longer_outputs(lengths, rows):
    kept = history(lengths)
    rows = [row for row in rows if row[1] < max(lengths)]
    steps = np.array([1, 2, 5, 11, 40, 70])
    number, weight = kept.survivors(*np.array(rows, dtype=np.int64).reshape(-1, 4).T, steps)
    for i, step in enumerate(steps.tolist()):
        there = []
        for held, out_len, remaining, delay in rows:
            longer = [length for length in lengths if length > out_len]
            ends = [min(length - out_len + delay, remaining) for length in longer]
            there.append((sum(step <= end for end in ends) / len(ends), held))
        assert number[i] == pytest.approx(sum(share for share, _ in there))
        assert weight[i] == pytest.approx(sum(share * held for share, held in there))


def test_survival_follows_the_window():
    kept = history([5, 7], window=2)
    row, steps = np.array([[10], [0], [5000], [0]]), np.array([5, 6, 7, 8])
    assert kept.survivors(*row, steps)[0].tolist() == [1, 0.5, 0.5, 0]
    kept.add(9)
    assert kept.survivors(*row, steps)[0].tolist() == [1, 1, 1, 0.5]
    # longer than any before, by far
    kept.add(3000)
    assert kept.survivors(*row, np.array([9, 10, 3000, 3001]))[0].tolist() == [1, 0.5, 0.5, 0]


def test_quantiles_are_uniform_and_the_same_for_the_same_seed():
    keys = np.arange(10_000) << 16
    shares = quantiles(keys, seed=3)
    assert shares.min() >= 0
    assert shares.max() < 1
    counts, _ = np.histogram(shares, bins=10, range=(0, 1))
    assert counts.min() > 800
    assert abs(np.corrcoef(shares[1:], shares[:-1])[0, 1]) < 0.05
    assert np.array_equal(quantiles(keys, seed=3), shares)
    # whoever asks beside it
    assert np.array_equal(quantiles(keys[100:200], seed=3), shares[100:200])
    assert not np.isclose(quantiles(keys, seed=4), shares).any()
    # the choices of one request
    assert len(set(quantiles(np.arange(100), seed=3).tolist())) == 100
