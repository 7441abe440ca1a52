"""The history of output lengths against a list that is sorted anew each time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
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


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), max_size=60),
    window=st.integers(1, 12),
    out_len=st.integers(0, 22),
    share=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_a_quantile_of_the_longer_ones_in_the_window(lengths, window, out_len, share):
    kept = history(lengths, window)
    recent = lengths[-window:]
    assert len(kept) == len(recent)
    assert not recent or kept.mean == pytest.approx(sum(recent) / len(recent))
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
