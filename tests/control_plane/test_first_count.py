"""A new Deployment begins with the count that is wanted, and keeps it."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

QUIET_S = 1.5


def count_changes(serving) -> int:
    """How often the count of the one ReplicaSet was changed since it was made."""
    [replica_set] = serving.objects("/apis/apps/v1/namespaces/{}/replicasets")
    return replica_set["metadata"]["generation"] - 1


def test_a_suspended_resource_never_has_a_pod(serving, operate):
    operate("operator")
    serving.create(suspend=True)
    serving.wait("a Deployment", lambda: serving.deployments() != [])
    serving.go_on(QUIET_S)
    assert (serving.deployment()["spec"]["replicas"], serving.pods()) == (0, [])
    assert count_changes(serving) == 0


def test_later_writes_of_the_deployment_leave_the_first_count_alone(serving, operate):
    operate("operator")
    serving.create(replicas=3)
    serving.wait("served", lambda: serving.is_settled() and len(serving.pods()) == 3)
    assert count_changes(serving) == 0
    serving.patch({"spec": {"rollout": {"progressDeadlineSeconds": 77}}})
    serving.wait("the edit", lambda: serving.deployment()["spec"]["progressDeadlineSeconds"] == 77)
    serving.go_on(QUIET_S)
    assert (serving.deployment()["spec"]["replicas"], len(serving.pods())) == (3, 3)
    assert count_changes(serving) == 0
    # and so they do after a change of it
    serving.patch({"spec": {"replicas": 2}})
    serving.wait("two pods", lambda: len(serving.pods()) == 2)
    serving.patch({"spec": {"rollout": {"progressDeadlineSeconds": 78}}})
    serving.wait("the edit", lambda: serving.deployment()["spec"]["progressDeadlineSeconds"] == 78)
    serving.go_on(QUIET_S)
    assert (serving.deployment()["spec"]["replicas"], len(serving.pods())) == (2, 2)
    assert count_changes(serving) == 1
