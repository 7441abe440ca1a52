"""Objects of others that happen to have a resource's name are neither changed nor deleted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lightllm_operator.errors import RefusedError
from lightllm_operator.reconcile import Reconciler
from lightllm_operator.settings import Settings
from operator_objects import spec_of


class FakeCluster:
    """Live objects by kind; the writes in `written`."""

    def __init__(self, **live: dict[str, Any]) -> None:
        self._live = live
        self.written: list[str] = []

    async def get(self, api_version: str, kind: str, namespace: str, name: str):
        return self._live.get(kind)

    async def apply(self, manifest: dict[str, Any], **_: Any) -> None:
        self.written.append(f"apply {manifest['kind']}")

    async def delete(self, api_version: str, kind: str, namespace: str, name: str) -> None:
        self.written.append(f"delete {kind}")


def child(*uids: str) -> dict[str, Any]:
    return {"metadata": {"ownerReferences": [{"uid": uid} for uid in uids]}}


def apply_others(cluster: FakeCluster, desired: int) -> list[str]:
    reconciler = Reconciler(cluster, Settings(serving_image="s"), None, None)
    asyncio.run(reconciler._apply_others(spec_of(), desired))
    return cluster.written


def test_own_and_absent_objects_are_written() -> None:
    assert apply_others(FakeCluster(), 2) == ["apply Service", "apply PodDisruptionBudget"]
    own = FakeCluster(Service=child("uid-demo"), PodDisruptionBudget=child("uid-demo"))
    assert apply_others(own, 1) == ["apply Service", "delete PodDisruptionBudget"]


@pytest.mark.parametrize("owner", [child(), child("uid-other")])
def test_a_service_of_others_is_refused_by_name(owner: dict[str, Any]) -> None:
    cluster = FakeCluster(Service=owner)
    with pytest.raises(RefusedError, match="service demo exists") as refused:
        apply_others(cluster, 2)
    assert refused.value.reason == "NameTaken"
    assert cluster.written == []


@pytest.mark.parametrize("desired", [1, 2])
def test_a_budget_of_others_is_left_alone(desired: int) -> None:
    cluster = FakeCluster(PodDisruptionBudget=child())
    assert apply_others(cluster, desired) == ["apply Service"]
