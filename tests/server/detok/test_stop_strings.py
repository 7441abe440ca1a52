"""Streamed pieces against a naive search of the whole text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightllm_server.detok.stop_strings import Match, StopMatcher

letters = st.text("ab—", max_size=40)
stop_lists = st.lists(st.text("ab—", max_size=5), max_size=4).map(tuple)


def naive(text: str, stops: tuple[str, ...]) -> Match | None:
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return Match(stop, end - len(stop), end)
    return None


def longest_held(text: str, stops: tuple[str, ...]) -> int:
    prefixes = [stop[:size] for stop in stops for size in range(1, len(stop))]
    return max((len(prefix) for prefix in prefixes if text.endswith(prefix)), default=0)


@given(pieces=st.lists(letters), stops=stop_lists)
def test_first_match_and_hold_back_equal_the_naive_ones(pieces, stops):
    matcher = StopMatcher(stops)
    seen = ""
    for piece in pieces:
        seen += piece
        expected = naive(seen, stops)
        assert matcher.feed(piece) == expected
        if expected:
            assert matcher.num_safe <= expected.start
            return
        assert matcher.num_safe == len(seen) - longest_held(seen, stops)


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (("abcd", "bc"), "abcd", Match("bc", 1, 3)),
        (("cd", "abcd"), "abcd", Match("abcd", 0, 4)),
        (("",), "abc", None),
        ((), "abc", None),
    ],
)
def test_first_complete_wins_then_the_longest(stops, text, expected):
    assert StopMatcher(stops).feed(text) == expected


def test_long_texts_and_stop_strings_take_linear_time():
    stop = "a" * 20_000 + "b"
    matcher = StopMatcher((stop,))
    start = time.process_time()
    for _ in range(40):
        assert matcher.feed("a" * 1000) is None
    assert matcher.num_safe == 20_000
    assert matcher.feed("b") == Match(stop, 20_000, 40_001)
    assert time.process_time() - start < 2
