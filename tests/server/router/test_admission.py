"""The policies against sums done by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightllm_server.router import admission
from lightllm_server.router.admission import (
    ConservativeAdmission,
    EfficientAdmission,
    Occupancy,
    PastFutureAdmission,
)
from lightllm_server.router.node_table import NodeTable


def occupancy(
    rows: Sequence[tuple[int, int, int]],
    *,
    exact: bool = True,
    preemptions: int = 0,
    nodes: Sequence[int] = (),
    tree: NodeTable | None = None,
) -> Occupancy:
    """rows: (held, out, limit) each."""
    held, out_lens, limits = np.array(rows, dtype=np.int64).T
    count = len(rows)
    return Occupancy(
        held=held,
        nodes=np.array(nodes or [0] * count),
        out_lens=out_lens,
        limits=limits,
        exact=np.full(count, exact),
        prefill_steps=np.zeros(count, dtype=np.int64),
        keys=np.arange(count) << 16,
        preemptions=np.full(count, preemptions),
        tree=tree or NodeTable(),
    )


def simulated_peak(rows: Sequence[tuple[int, int, int]]) -> int:
    """Run all rows to their limits, one token per step, and note the most tokens held at once."""
    state = [(held, limit - out) for held, out, limit in rows]
    peak = 0
    while state:
        peak = max(peak, sum(held for held, _ in state))
        state = [(held + 1, left - 1) for held, left in state if left > 0]
    return peak


def test_the_example_of_lightllms_documentation() -> None:
    # three requests, tokens held and still to come: (5, 6), (4, 5), (3, 4), sorted by what is to
    # come: peaks 6·1+5, 5·2+9, 4·3+12 = 24; each length counts one more for the step in flight
    rows = occupancy([(5, 0, 6), (4, 0, 5), (3, 0, 4)])
    assert EfficientAdmission(steps_in_flight=0).peak(rows) == 24
    assert EfficientAdmission().peak(rows) == 27


@pytest.mark.parametrize("seed", range(5))
def test_the_peak_is_that_of_a_run_to_the_end(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [(int(h), int(o), int(o + r)) for h, o, r in rng.integers(1, 50, size=(12, 3))]
    got = EfficientAdmission(steps_in_flight=0).peak(occupancy(rows))
    assert got == simulated_peak(rows)


@pytest.mark.parametrize(
    ("out", "limit", "exact", "remaining"),
    [
        (0, 100, False, 100),  # the limit is less than expected
        (0, 5000, False, 1024),  # nothing known yet
        (1000, 5000, False, 100),  # 1.1 × 1000 = 1100
        (4900, 5000, False, 100),  # never beyond the limit
        (0, 5000, True, 5000),  # ignore_eos: certain
    ],
)
def test_how_much_is_expected_of_a_request(
    out: int, limit: int, exact: bool, remaining: int
) -> None:
    rows = occupancy([(10, out, limit)], exact=exact)
    assert EfficientAdmission(steps_in_flight=0).peak(rows) == 10 + remaining


def efficient(lengths: Sequence[int], **options: float) -> EfficientAdmission:
    policy = EfficientAdmission(**({"steps_in_flight": 0, "reserved": 0} | options))
    for length in lengths:
        policy.observe(length)
    return policy


@pytest.mark.parametrize(
    ("lengths", "out", "limit", "exact", "peak"),
    [
        ([50], 0, 5000, False, 10 + 50),
        ([50], 20, 5000, False, 10 + 30),
        ([50], 0, 20, False, 10 + 20),  # never beyond the limit
        ([50], 0, 5000, True, 10 + 5000),  # ignore_eos: certain
        ([50], 50, 5000, False, 10 + 974),  # none known is longer: LightLLM's guess
        ([50], 2000, 5000, False, 10 + 200),
        # all are there until the first ends
        ([30, 50], 0, 5000, False, 10 + 30),
        # half are there when the last ends
        ([10, 60], 0, 5000, False, 70 / 2),
        ([10, 60], 10, 5000, False, 10 + 50),
        # beyond the horizon nothing is foreseen
        ([500], 0, 5000, False, 10 + 64),
        ([500], 0, 5000, True, 10 + 5000),
    ],
)
def test_efficient_expects_what_the_known_outputs_did(
    lengths: list[int], out: int, limit: int, exact: bool, peak: float
) -> None:
    got = efficient(lengths).peak(occupancy([(10, out, limit)], exact=exact))
    # a span of the time to come counts with what is held in its last step
    assert peak <= got <= 1.4 * peak


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=30),
    rows=st.lists(
        st.tuples(
            st.integers(1, 300), st.integers(0, 80), st.integers(1, 90), st.booleans(),
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=8,
    ),
)  # fmt: skip
def test_efficient_is_the_highest_of_all_steps(
    lengths: list[int], rows: list[tuple[int, int, int, bool, int]]
) -> None:
    """Beside all steps and all known outputs one by one."""
    asked = occupancy([(held, out, out + left) for held, out, left, _, _ in rows])
    asked.exact[:] = [exact for *_, exact, _ in rows]
    asked.prefill_steps[:] = [steps for *_, steps in rows]
    wanted = 0.0
    for step in range(1, 200):
        there = 0.0
        for held, out, left, exact, prefill_steps in rows:
            longer = [length for length in lengths if length > out]
            ends = [min(left, length - out) for length in longer]
            if exact or not longer:
                ends = [left if exact else min(left, 1024 - out)]
            elif step > 64:
                continue
            alive = sum(step <= end + 1 + prefill_steps for end in ends) / len(ends)
            there += alive * (held + step)
        wanted = max(wanted, there)
    peak = efficient(lengths, steps_in_flight=1).peak(asked)
    # a span of the time to come counts with what is held in its last step
    assert wanted <= peak <= 1.5 * wanted + 1


def test_efficient_expects_a_shared_prefix_to_stay() -> None:
    tree = NodeTable()
    shared = tree.add(0, 1000)
    own = tree.add(shared, 40)
    lengths = [10] * 9 + [60]
    alone = occupancy([(0, 0, 500)], exact=False, nodes=[shared], tree=tree)
    assert 1000 + 10 <= efficient(lengths).peak(alone) <= 1000 + 14
    rows = [((0, 0, 500), shared), ((5, 0, 500), own)]
    for order in (rows, rows[::-1]):
        held, nodes = zip(*order, strict=True)
        two = occupancy(held, exact=False, nodes=nodes, tree=tree)
        assert 1000 + 45 + 20 <= efficient(lengths).peak(two) <= 1000 + 45 + 28
        # also where one of them will be gone soon
        at = nodes.index(shared)
        two.exact[at], two.limits[at] = True, 1
        assert 1000 + 45 + 10 <= efficient(lengths).peak(two) <= 1000 + 45 + 14


def test_a_prefix_goes_with_its_only_holder_and_stays_with_two() -> None:
    tree = NodeTable()
    shared = tree.add(0, 1000)
    own = tree.add(shared, 1)
    # three of four are gone while the last row grows
    for nodes, peak in (([shared, 0], 1002), ([own, shared, 0], 1060), ([shared, own, 0], 1060)):
        rows = [(0, 0, 500)] * (len(nodes) - 1) + [(0, 0, 60)]
        asked = occupancy(rows, exact=False, nodes=nodes, tree=tree)
        asked.exact[-1] = True
        assert peak <= efficient([1, 1, 1, 64]).peak(asked) <= peak + 40


def test_efficient_sorts_what_is_certain_beside_what_is_not() -> None:
    rows = occupancy([(0, 0, 10), (0, 0, 200), (0, 0, 500)], exact=False)
    rows.exact[:2] = True
    assert efficient([1, 2]).peak(rows) == 200


def test_efficient_keeps_a_reserve_where_it_cannot_be_certain() -> None:
    # 10 held and 40 to come, by the history or by the limit
    for exact, least in ((False, 51), (True, 50)):
        rows = occupancy([(10, 0, 40)], exact=exact)
        bare, reserved = (efficient([40], reserved=share).peak(rows) for share in (0, 0.02))
        assert bare >= 50
        assert reserved >= least
        assert (reserved > bare) is not exact


@pytest.mark.parametrize("seed", range(5))
def test_efficient_is_near_the_mean_of_many_futures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(4, 1, 500).astype(np.int64) + 1
    outs = rng.integers(0, 60, 200)
    rows = [
        (int(h), int(o), int(o + r))
        for h, o, r in zip(rng.integers(1, 300, 200), outs, rng.integers(1, 400, 200), strict=True)
    ]
    moments, mean = np.arange(1, 65), np.zeros(64)
    for _ in range(100):
        for held, out, limit in rows:
            end = min(int(rng.choice(lengths[lengths > out])), limit) - out
            mean += np.where(moments <= end, held + moments, 0) / 100
    got = efficient(lengths.tolist()).peak(occupancy(rows, exact=False))
    assert mean.max() * 0.98 <= got <= mean.max() * 1.05


def test_the_prefill_still_to_come_delays_the_end() -> None:
    rows = occupancy([(10, 0, 5)])
    rows.prefill_steps[:] = 3
    assert EfficientAdmission(steps_in_flight=0).peak(rows) == 10 + 5 + 3


def test_shared_slots_count_once_and_for_the_longest_lived() -> None:
    tree = NodeTable()
    shared = tree.add(0, 100)
    own = tree.add(shared, 7)
    # b = 50 and 10: the shared 100 belong to the first; peak = max(50+100, 10·2+100+7)
    rows = occupancy([(0, 0, 10), (0, 0, 50)], nodes=[own, shared], tree=tree)
    assert EfficientAdmission(steps_in_flight=0).peak(rows) == 150
    # b = 50 for the one with the longer path: (50+107), (10·2+107)
    rows = occupancy([(0, 0, 50), (0, 0, 10)], nodes=[own, shared], tree=tree)
    assert EfficientAdmission(steps_in_flight=0).peak(rows) == 157
    assert ConservativeAdmission().peak(rows) == 107 + 60


def past_future(lengths: Sequence[int], **options: int) -> PastFutureAdmission:
    policy = PastFutureAdmission(steps_in_flight=0, reserved=0, **options)
    for length in lengths:
        policy.observe(length)
    return policy


@pytest.mark.parametrize(
    ("lengths", "out", "limit", "exact", "preemptions", "remaining"),
    [
        ([], 0, 300, False, 0, 300),  # nothing known yet: the worst case
        ([40], 0, 300, False, 0, 40),
        ([40], 30, 300, False, 0, 10),
        ([20, 20, 20, 40], 30, 300, False, 0, 10),  # only what is longer counts
        ([40], 40, 300, False, 0, 260),  # nothing known is longer: the worst case
        ([400], 0, 300, False, 0, 300),  # never beyond the limit
        ([40], 0, 300, True, 0, 300),  # ignore_eos: certain
        ([40], 0, 300, False, 1, 40),
        ([40], 0, 300, False, 2, 300),  # preempted twice: the worst case
    ],
)
def test_what_past_future_expects(
    lengths: list[int], out: int, limit: int, exact: bool, preemptions: int, remaining: int
) -> None:
    rows = occupancy([(10, out, limit)], exact=exact, preemptions=preemptions)
    assert past_future(lengths).peak(rows) == 10 + remaining


@pytest.mark.parametrize(("limit", "want"), [(300, 103), (90, 100)])
def test_past_future_keeps_a_reserve_where_it_cannot_be_certain(limit: int, want: int) -> None:
    # 10 held and 90 to come, by the history or by the limit
    policy = PastFutureAdmission(steps_in_flight=0, reserved=0.03)
    policy.observe(90)
    assert policy.peak(occupancy([(10, 0, limit)], exact=False)) == want


def test_past_future_sees_each_moment_of_the_future() -> None:
    # all draws are 40: after 10 steps the first ends, with 70 and 10 tokens held
    rows = occupancy([(60, 30, 300), (0, 0, 300)], exact=False)
    assert past_future([40]).peak(rows) == max(70 + 10, 40)
    # without a history both run to their limits
    assert past_future([]).peak(rows) == max(60 + 270 + 270, 300)


def test_a_seed_gives_the_same_peak_again_and_others_another() -> None:
    lengths = list(range(1, 200))
    rows = occupancy([(5, 0, 1000)] * 20, exact=False)
    peaks = [past_future(lengths, seed=seed).peak(rows) for seed in (1, 1, 2, 3)]
    assert peaks[0] == peaks[1]
    assert len(set(peaks)) == 3
    policy = past_future(lengths)
    assert policy.peak(rows) == policy.peak(rows)


@pytest.mark.parametrize(
    "policy",
    [
        EfficientAdmission(),
        efficient([3, 9, 27, 81, 243, 729, 1458]),
        ConservativeAdmission(),
        past_future([3, 9, 27, 81, 243, 729, 1458]),
    ],
)
def test_a_row_more_never_needs_less(policy: admission.AdmissionPolicy) -> None:
    rng = np.random.default_rng(0)
    for sharing in (0, 1, 4):
        tree = NodeTable()
        nodes = [0]
        for _ in range(sharing):
            nodes.append(tree.add(int(rng.choice(nodes)), int(rng.integers(1, 3000))))
        rows = [(int(h), int(o), int(o + r)) for h, o, r in rng.integers(1, 2000, size=(30, 3))]
        held_by = rng.choice(nodes, len(rows)).tolist()
        for exact in (np.ones(30, dtype=bool), np.zeros(30, dtype=bool), rng.random(30) < 0.5):
            peaks = []
            for n in range(1, len(rows) + 1):
                asked = occupancy(rows[:n], nodes=held_by[:n], tree=tree)
                asked.exact[:] = exact[:n]
                peaks.append(policy.peak(asked))
            assert peaks == sorted(peaks)
            assert peaks[0] > 0


def test_conservative_reserves_the_sum_of_all_limits() -> None:
    rows = occupancy([(5, 2, 8), (4, 0, 5)], exact=False)
    assert ConservativeAdmission().peak(rows) == 5 + 6 + 4 + 5


def test_the_command_lines_names() -> None:
    assert isinstance(admission.policy("efficient"), EfficientAdmission)
    assert isinstance(admission.policy("past-future"), PastFutureAdmission)
    assert isinstance(admission.policy("conservative"), ConservativeAdmission)
