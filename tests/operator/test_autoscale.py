"""The scaling formula, its windows and its rates, against counts done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightllm_operator.autoscale import Decision, History, decide
from operator_objects import sample_of, spec_of


def autoscaling(**fields):
    windows = {"scaleUp": {"maxPods": 100}, "scaleDown": {"stabilizationWindowSeconds": 0}}
    spec = spec_of(autoscaling={"maxReplicas": 10, **windows, **fields}).autoscaling
    assert spec is not None
    return spec


def decide_once(spec, samples, replicas, history=None, now=1000.0, **more) -> Decision:
    given = {"missing": (), "num_starting": 0, **more}
    history = History(started=0.0) if history is None else history
    return decide(spec, samples, replicas=replicas, history=history, now=now, **given)


def test_a_long_queue_adds_pods_by_what_one_pod_holds():
    # 40 waiting, 16 running; the pod is full at 16: (40 + 16) / (16 + 4) = 2.8
    decision = decide_once(autoscaling(), [sample_of(waiting=40, running=16)], 1)
    assert (decision.replicas, decision.capacity) == (3, 16)


def test_a_flow_that_is_known_counts_by_littles_law():
    history = History(started=0.0)
    busy = {"running": 16, "waiting": 40}
    first = sample_of(**busy, accepted_total=100, service_count_total=50, service_seconds_total=0)
    history.take([first], 990.0)
    # 2 requests/s for 10 s, each of 20 s: 40 busy + 40 · 20 / 300 for the queue, 14.4 per pod
    flow = {"accepted_total": 120, "service_count_total": 60, "service_seconds_total": 200}
    second = sample_of(**busy, **flow)
    assert decide_once(autoscaling(), [second], 2, history).replicas == 3


def history_of_flow(rate: float, seconds: float, *samples) -> History:
    """Ten seconds, until 1000 s, in which `rate` requests/s came and ended after `seconds` each."""
    history = History(started=0.0)
    history.take(samples, 990.0)
    count = 10 * rate
    flow = {"accepted_total": count, "service_count_total": count}
    flown = replace(samples[0], **flow, service_seconds_total=count * seconds)
    history.take([flown, *samples[1:]], 1000.0)
    return history


def test_a_queue_beside_a_pod_with_room_adds_none():
    old = sample_of("p0", waiting=40, running=16)
    # 0.2 requests/s of 20 s: 4 busy, 2.7 more to drain the queue; one pod's 14.4 would do
    for running, replicas in ((4, 2), (16, 3)):
        new = sample_of("p1", running=running)
        history = history_of_flow(0.2, 20, old, new)
        decision = decide_once(autoscaling(), [old, new], 2, history, now=1000.1)
        assert decision.replicas == replicas, running


def test_within_the_tolerance_nothing_changes():
    # the target for 2 pods is 8, and 20 % of it are 1.6
    for waiting, replicas in ((7, 2), (8, 2), (9, 2), (10, 3)):
        sample = sample_of(waiting=waiting, running=16)
        decision = decide_once(autoscaling(tolerancePercent=20), [sample], 2)
        assert decision.replicas == replicas, waiting


def test_an_idle_deployment_goes_to_its_minimum():
    samples = [sample_of("p0"), sample_of("p1"), sample_of("p2")]
    slow = autoscaling(minReplicas=1)
    # at most one pod per minute by default
    assert decide_once(slow, samples, 3).replicas == 2
    assert decide_once(slow, samples, 3).limited == "RateLimited"


def test_at_the_lowest_count_single_requests_change_nothing():
    spec = autoscaling(minReplicas=1)
    history = History(started=0.0)
    told = [
        decide_once(spec, [sample_of(running=running)], 1, history, now=1000.0 + 5 * running)
        for running in (0, 1, 0)
    ]
    assert [(each.replicas, each.limited) for each in told] == [(1, "")] * 3


def test_pods_that_load_do_not_cascade():
    sample = sample_of(waiting=20, running=16)
    decision = decide_once(autoscaling(), [sample], 4, num_starting=3)
    assert decision.replicas == 4


def test_missing_metrics_hold_the_count():
    decision = decide_once(autoscaling(), [], 3)
    assert (decision.replicas, decision.held) == (3, "MetricsUnavailable")


def test_a_pod_that_does_not_answer_counts_as_full():
    # 1 of 3 answers and is idle; the two others count (16 + 4) each: 40 / (0.8 · 16) > 3
    assert decide_once(autoscaling(), [sample_of()], 3, missing=("p1", "p2")).replicas == 3


@pytest.mark.parametrize("is_ready", [True, False])
def test_what_came_while_a_pod_did_not_answer_is_counted_while_it_is_ready(is_ready):
    history = History(started=0.0)
    spec, other = autoscaling(), sample_of("p1")
    for now, accepted in ((1000.0, 10), (1005.0, None), (1010.0, 40)):
        answered = [] if accepted is None else [sample_of("p0", accepted_total=accepted)]
        missing = ["p0"] if accepted is None and is_ready else []
        decide_once(spec, [*answered, other], 2, history, now, missing=missing)
    # 30 requests in 10 s
    assert history.arrival_rate(1010.0) == (3.0 if is_ready else 0.0)


def test_after_a_start_no_pod_goes_for_one_window():
    spec = autoscaling(scaleDown={"stabilizationWindowSeconds": 300})
    history = History(started=1000.0)
    samples = [sample_of("p0"), sample_of("p1")]
    early = decide_once(spec, samples, 2, history, now=1299.0)
    assert (early.replicas, early.held) == (2, "StartupHold")
    assert decide_once(spec, samples, 2, history, now=1300.0).replicas == 1


def test_the_highest_count_of_the_window_holds_a_scale_down_back():
    spec = autoscaling(scaleDown={"stabilizationWindowSeconds": 60})
    history = History(started=0.0)
    busy = [sample_of("p0", running=16), sample_of("p1", running=16)]
    idle = [sample_of("p0"), sample_of("p1")]
    assert decide_once(spec, busy, 2, history, now=1000.0).replicas == 2
    assert decide_once(spec, idle, 2, history, now=1059.0).replicas == 2
    assert decide_once(spec, idle, 2, history, now=1061.0).replicas == 1


def test_a_burst_shorter_than_the_scale_up_window_adds_nothing():
    spec = autoscaling(scaleUp={"stabilizationWindowSeconds": 30, "maxPods": 100})
    history = History(started=0.0)
    burst = [sample_of(waiting=40, running=16)]
    assert decide_once(spec, [sample_of(running=12)], 1, history, now=1000.0).replicas == 1
    assert decide_once(spec, burst, 1, history, now=1020.0).replicas == 1
    assert decide_once(spec, burst, 1, history, now=1031.0).replicas > 1


@pytest.mark.parametrize("blocked", ["GPUsUnavailable", "PodsRefused"])
def test_no_more_pods_are_asked_for_than_can_start(blocked):
    sample = sample_of(waiting=400, running=16)
    decision = decide_once(autoscaling(), [sample], 2, blocked=blocked)
    assert (decision.replicas, decision.limited) == (2, blocked)


def test_a_full_kv_cache_adds_a_pod_before_a_queue_forms():
    assert decide_once(autoscaling(), [sample_of(running=4, kv_usage=0.95)], 1).replicas == 2


def test_full_kv_caches_add_no_pod_that_the_flow_does_not_need():
    # 6 run at 95 %: a pod holds 6.3, and 2 pods of them 11.4 at 90 %
    pods = [sample_of("p0", running=6, kv_usage=0.95), sample_of("p1", running=6, kv_usage=0.95)]
    for rate, replicas in ((0.5, 2), (0.6, 3)):
        history = history_of_flow(rate, 20, *pods)
        assert decide_once(autoscaling(), pods, 2, history, now=1000.1).replicas == replicas, rate


def test_a_count_that_is_not_written_yet_uses_up_no_rate():
    spec = autoscaling(scaleUp={"maxPods": 4, "periodSeconds": 60})
    history = History(started=0.0)
    busy = [sample_of(waiting=400, running=16)]
    for now in (1000.0, 1005.0, 1010.0):
        assert decide_once(spec, busy, 1, history, now=now).replicas == 5
    # seen at 5 now: the four pods count until the period is over
    assert decide_once(spec, busy, 5, history, now=1015.0).replicas == 6
    assert decide_once(spec, busy, 6, history, now=1020.0).limited == "RateLimited"
    assert decide_once(spec, busy, 6, history, now=1081.0).replicas == 10


@pytest.mark.parametrize(("replicas", "given"), [(1, 3), (9, 5)])
def test_edited_bounds_hold_at_once(replicas, given):
    spec = autoscaling(minReplicas=3, maxReplicas=5)
    assert decide_once(spec, [sample_of(running=8)], replicas).replicas == given


@given(
    waiting=st.integers(0, 10**6),
    running=st.integers(0, 1000),
    replicas=st.integers(0, 20),
    missing=st.integers(0, 5),
    starting=st.integers(0, 5),
)
def test_the_count_is_always_inside_the_bounds(waiting, running, replicas, missing, starting):
    decision = decide_once(
        autoscaling(minReplicas=2, maxReplicas=7),
        [sample_of(waiting=waiting, running=running)],
        replicas,
        missing=[f"silent-{number}" for number in range(missing)],
        num_starting=starting,
    )
    assert 2 <= decision.replicas <= 7
