"""Plays the controllers and the kubelet: Jobs report, Deployments get Ready pods, at once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from lightllm_operator.names import API_VERSION, CHECK, PLURAL, SERVER, child_labels
from rest import MERGE, Rest

__all__ = ["NAMESPACE", "Fleet"]

Object = dict[str, Any]

NAMESPACE = "bench"
RESOURCES = f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/{PLURAL}"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
_AT_ONCE = 16


class Fleet:
    """`report`: what a check Job's pod says. `addresses`: of the fake metric endpoints; pods get
    them in turn, and once there are no more they are Ready without an address, and not scraped.
    An async context manager."""

    def __init__(self, rest: Rest, report: str, addresses: list[str]) -> None:
        self._rest = rest
        self._report = report
        self._addresses = addresses[::-1]
        self._slots = asyncio.Semaphore(_AT_ONCE)
        # Deployment → pod → its address, "" without
        self.pods: dict[str, dict[str, str]] = defaultdict(dict)
        self.replicas: dict[str, int] = {}
        # resources whose condition Ready is true
        self.ready: set[str] = set()
        self.changed = asyncio.Condition()
        self._newest: dict[str, Object] = {}
        self._busy: set[str] = set()
        # what fails in it ends the block that the fleet is used in
        self._tasks = asyncio.TaskGroup()
        self._watches: list[asyncio.Task[None]] = []

    def add_addresses(self, addresses: list[str]) -> None:
        """For pods that come from now on."""
        self._addresses += addresses

    async def __aenter__(self) -> Fleet:
        await self._tasks.__aenter__()
        apps = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
        for watch in (self._watch_jobs(), self._watch_deployments(apps), self._watch_resources()):
            self._watches.append(self._tasks.create_task(watch))
        return self

    async def __aexit__(self, *error: Any) -> None:
        for watch in self._watches:
            watch.cancel()
        await self._tasks.__aexit__(*error)

    async def _watch_resources(self) -> None:
        async for _, body in self._rest.watch(RESOURCES):
            metadata, status = body["metadata"], body.get("status", {})
            holds = any(
                condition["type"] == "Ready"
                and condition["status"] == "True"
                and condition["observedGeneration"] == metadata["generation"]
                for condition in status.get("conditions", ())
            )
            (self.ready.add if holds else self.ready.discard)(metadata["name"])
            await self._tell()

    async def _watch_jobs(self) -> None:
        async for kind, job in self._rest.watch(f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"):
            if kind == "ADDED":
                self._tasks.create_task(self._run_job(job))

    async def _watch_deployments(self, path: str) -> None:
        async for kind, deployment in self._rest.watch(path):
            name = deployment["metadata"]["name"]
            if kind == "DELETED":
                continue
            self.replicas[name] = deployment["spec"]["replicas"]
            await self._tell()
            self._newest[name] = deployment
            if name not in self._busy:
                self._busy.add(name)
                self._tasks.create_task(self._follow(name))

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def _run_job(self, job: Object) -> None:
        name = job["metadata"]["name"]
        labels = job["spec"]["template"]["metadata"]["labels"]
        is_check = (
            labels.items() >= child_labels(labels["app.kubernetes.io/instance"], CHECK).items()
        )
        message = self._report if is_check else ""
        now = _now()
        ended = {"exitCode": 0, "reason": "Completed", "message": message, "finishedAt": now}
        await self._make_pod(
            job,
            f"{name}-0",
            {**labels, "batch.kubernetes.io/job-name": name},
            {
                "phase": "Succeeded",
                "containerStatuses": [_container(job, ready=False, state={"terminated": ended})],
            },
        )
        true = {"status": "True", "lastProbeTime": now, "lastTransitionTime": now}
        kinds = ("SuccessCriteriaMet", "Complete")
        status = {
            "startTime": now,
            "completionTime": now,
            "succeeded": 1,
            "conditions": [{"type": kind, **true} for kind in kinds],
        }
        path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{name}/status"
        await self._rest("PATCH", path, {"status": status}, MERGE)

    async def _follow(self, name: str) -> None:
        """Bring one Deployment's pods in line with its newest state."""
        while deployment := self._newest.pop(name, None):
            wanted, pods = deployment["spec"]["replicas"], self.pods[name]
            while len(pods) < wanted:
                await self._serve(deployment, pods)
            while len(pods) > wanted:
                pod, address = pods.popitem()
                await self._rest("DELETE", f"{_PODS}/{pod}", {"gracePeriodSeconds": 0})
                self._addresses += [address] if address else []
            counts = {
                "observedGeneration": deployment["metadata"]["generation"],
                **dict.fromkeys(
                    ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), wanted
                ),
            }
            if not counts.items() <= deployment.get("status", {}).items():
                path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{name}/status"
                await self._rest("PATCH", path, {"status": counts}, MERGE)
        self._busy.discard(name)

    async def _serve(self, deployment: Object, pods: dict[str, str]) -> None:
        name = deployment["metadata"]["name"]
        address = self._addresses.pop() if self._addresses else ""
        free = next(i for i in range(len(pods) + 1) if f"{name}-{i}" not in pods)
        pods[f"{name}-{free}"] = address
        now = _now()
        status = {
            "phase": "Running",
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": now}
                for kind in ("PodScheduled", "ContainersReady", "Ready")
            ],
            "containerStatuses": [
                _container(deployment, ready=True, state={"running": {"startedAt": now}})
            ],
        }
        if address:
            status |= {"podIP": address, "podIPs": [{"ip": address}]}
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert labels.items() >= child_labels(name, SERVER).items(), labels
        await self._make_pod(deployment, f"{name}-{free}", labels, status)

    async def _make_pod(
        self, owner: Object, name: str, labels: dict[str, str], status: Object
    ) -> None:
        metadata = owner["metadata"]
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels, "ownerReferences": [reference]},
            "spec": owner["spec"]["template"]["spec"],
        }
        async with self._slots:
            await self._rest("POST", _PODS, pod)
            await self._rest("PATCH", f"{_PODS}/{name}/status", {"status": status}, MERGE)


def _container(owner: Object, *, ready: bool, state: Object) -> Object:
    container = owner["spec"]["template"]["spec"]["containers"][0]
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": ready,
        "restartCount": 0,
        "state": state,
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
