"""The operator killed before and after each of its writes: the end is that of an unkilled run.

Real API server and controllers, real operator processes; the test plays the kubelet.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest

import crash_proxy
from crash_runs import CrashRuns, Scenario, State
from fake_kubelet import FakeMetrics, Queue
from real_operator import changed_copy
from rest import Rest

SPEC = {"model": {"uri": "file:///models/demo-model"}}
AUTOSCALED = {
    **SPEC,
    "autoscaling": {
        "maxReplicas": 3,
        "scaleDown": {"stabilizationWindowSeconds": 1, "maxPods": 9, "periodSeconds": 1},
    },
}
LONG, SHORT = (Queue(waiting=50, running=16),), (Queue(running=1),)


def serves(num_pods: int, image: str = "registry.test/lightllm-server:1"):
    """Whether a state has just so many Ready pods of that image, and says so."""

    def reached(state: State) -> bool:
        pods = [pod for pod in state["pods"] if pod["status"]["phase"] == "Running"]
        images = {pod["spec"]["containers"][0]["image"] for pod in pods}
        [resource] = state["lightllmdeployments"]
        status = resource.get("status", {})
        conditions = {c["type"]: c["status"] for c in status.get("conditions", ())}
        return (
            len(pods) == status.get("readyReplicas") == num_pods
            and images == {image}
            and (conditions["Ready"], conditions["Progressing"]) == ("True", "False")
        )

    return reached


def is_empty(state: State) -> bool:
    return not any(state.values())


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="create", spec={**SPEC, "replicas": 2}, reached=serves(2)),
        Scenario(
            name="edit",
            spec=SPEC,
            served=serves(1),
            # one edit that reaches every child: a check, a rollout, the Service, a budget
            edit={"spec": {"image": "other:2", "replicas": 2, "service": {"port": 8080}}},
            reached=serves(2, "other:2"),
        ),
        Scenario(
            name="scale-out",
            spec=AUTOSCALED,
            served=serves(1),
            queues=(SHORT, LONG),
            reached=serves(3),
        ),
        Scenario(
            name="scale-in",
            spec=AUTOSCALED,
            served=serves(3),
            queues=(LONG, SHORT),
            reached=serves(1),
        ),
        # deleted while no operator runs, after each write of its creation
        Scenario(
            name="delete",
            spec={**SPEC, "replicas": 2},
            served=serves(2),
            deleted=True,
            reached=is_empty,
        ),
    )
}


# as if the children beside the Deployment were made on an event, not by what is there
EDGE_TRIGGERED = {
    "reconcile.py": {
        "if refused_error is None and pinned is not None:": (
            "if refused_error is None and pinned is not None and deployment is None:"
        )
    }
}


@pytest.fixture(scope="module")
def start(control_plane, report, tmp_path_factory):
    """Makes `CrashRuns` whose operators end with the block."""
    with (
        Rest(control_plane) as rest,
        crash_proxy.running(control_plane) as proxy,
        FakeMetrics().serving() as metrics,
    ):

        @contextmanager
        def start(**more):
            folder = tmp_path_factory.mktemp("operators")
            runs = CrashRuns(rest, proxy, metrics, folder, report, **more)
            try:
                yield runs
            finally:
                runs.stop()

        yield start


def strike_all(runs: CrashRuns, scenario: Scenario, capsys, every: int) -> None:
    """A run for each `every`-th pair of k and side, until a run has fewer than k writes."""
    unkilled = runs.run(scenario)
    with capsys.disabled():
        print(f"\n{scenario.name}: {len(unkilled.writes)} writes in {unkilled.seconds:.1f} s")
    differing, k, struck = [], 0, True
    while struck and len(differing) < 3:
        k += 1
        for index, side in enumerate(crash_proxy.SIDES):
            if (2 * k + index) % every:
                continue
            try:
                run = runs.run(scenario, k=k, side=side, expected=unkilled.state)
            except AssertionError as error:
                differing.append(f"k={k} {side}: {error}")
                told = "DIFFERS"
            else:
                struck = run.struck
                write = run.writes[k - 1] if struck else f"only {len(run.writes)} writes"
                told = f"same, {run.seconds:.1f} s, {write}"
            with capsys.disabled():
                print(f"  {scenario.name} k={k} {side}: {told}")
    assert not differing, "\n".join(differing)


@pytest.mark.whole
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_write_may_be_the_last(start, name, capsys):
    with start() as runs:
        strike_all(runs, SCENARIOS[name], capsys, every=1)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", SCENARIOS)
def test_some_writes_may_be_the_last(start, name, capsys):
    with start() as runs:
        strike_all(runs, SCENARIOS[name], capsys, every=3)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_operator_that_depends_on_events_is_caught(start, tmp_path):
    scenario = SCENARIOS["create"]
    with start(source=changed_copy(tmp_path, EDGE_TRIGGERED)) as runs:
        unkilled = runs.run(scenario)
        # it waits in vain
        runs.timeout_s = 15
        [k] = [k for k, write in enumerate(unkilled.writes, 1) if "/services/" in write]
        with pytest.raises(AssertionError, match=r'\+ "services": \[\]'):
            runs.run(scenario, k=k, expected=unkilled.state)
