"""A cluster in memory, without controllers: what reconcile reads and writes of one resource."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter

from lightllm_operator.autoscale import Decision
from lightllm_operator.cached_cluster import CachedCluster, FreshCluster
from lightllm_operator.errors import ApiError, WriteWantedError
from lightllm_operator.names import CHECK, KIND, SERVER, child_labels
from lightllm_operator.reconcile import Key, Reconciler
from lightllm_operator.settings import Settings
from lightllm_operator.sizing import KvChoice
from lightllm_operator.timestamps import timestamp_now
from lightllm_operator.watch_cache import WATCHED, WatchCache
from operator_objects import pod_of, sample_of

__all__ = ["DEMO", "Downloads", "MemoryCluster", "View", "reconcile", "settle"]

REPORT = {
    "family": "llama",
    "heads": 4,
    "kv_heads": 2,
    "valid_tp": [1, 2],
    "kv_bytes_per_token": {"model": 1, "int8": 1},
    "int8_kv": {"supported": True, "reason": ""},
    "weight_bytes": 1,
    "errors": [],
}
DEMO = Key("default", "demo")


class MemoryCluster:
    """Objects by kind and name, which the watches show at once. refusals: by kind."""

    def __init__(self, cache: WatchCache) -> None:
        self._cache = cache
        self._versions = itertools.count(1)
        self.objects: dict[tuple[str, str], dict] = {}
        self.asked: Counter[str] = Counter()
        self.refusals: dict[str, ApiError] = {}

    def put(self, body: dict) -> dict:
        kind, metadata = body["kind"], body["metadata"]
        version = {"resourceVersion": str(next(self._versions))}
        made = {"generation": 1, "creationTimestamp": timestamp_now()}
        metadata = {**made, **metadata, "namespace": "default", **version}
        stored = {**body, "metadata": metadata}
        self.objects[kind, metadata["name"]] = stored
        if kind in {each.kind for each in WATCHED}:
            self._cache.show(kind, stored)
        return stored

    async def get(self, _version, kind, _namespace, name):
        self.asked[f"GET {kind}"] += 1
        return self.objects.get((kind, name))

    async def list(self, _version, kind, _namespace, labels=None, *, cached=False):
        self.asked[f"LIST {kind}"] += 1
        return [
            body
            for (found, _), body in self.objects.items()
            if found == kind and (labels or {}).items() <= body["metadata"]["labels"].items()
        ]

    async def apply(self, manifest, *, manager="", subresource=""):
        kind, metadata = manifest["kind"], manifest["metadata"]
        self.asked[f"APPLY {kind}"] += 1
        if error := self.refusals.get(kind):
            raise error
        before = self.objects.get((kind, metadata["name"]), {})
        merged = {**before, **manifest, "metadata": {**before.get("metadata", {}), **metadata}}
        merged["spec"] = {**before.get("spec", {}), **manifest.get("spec", {})}
        return self.put(merged)

    async def create(self, manifest):
        self.asked[f"POST {manifest['kind']}"] += 1

    async def delete(self, _version, kind, _namespace, name):
        self.asked[f"DELETE {kind}"] += 1
        self._cache.show(kind, self.objects.pop((kind, name)), deleted=True)

    def end_check(self, *errors: str) -> None:
        """As the kubelet does with the newest; errors: why the model cannot be served."""
        name = [name for kind, name in self.objects if kind == "Job"][-1]
        labels = {**child_labels("demo", CHECK), "batch.kubernetes.io/job-name": name}
        report = json.dumps({**REPORT, "errors": errors})
        ended = {"terminated": {"exitCode": 0, "message": report}}
        status = {"containerStatuses": [{"name": "check", "image": "i", "state": ended}]}
        self.put(
            {"kind": "Pod", "metadata": {"name": f"{name}-0", "labels": labels}, "status": status}
        )

    def condition(self, kind: str) -> dict:
        conditions = self.objects[KIND, "demo"]["status"]["conditions"]
        [found] = [condition for condition in conditions if condition["type"] == kind]
        return found

    def add_server(self, name: str, **fields) -> None:
        """A serving pod; the fields are those of `operator_objects.pod_of`."""
        pod = pod_of(name, **fields)
        metadata = {**pod["metadata"], "labels": child_labels("demo", SERVER)}
        self.put({**pod, "kind": "Pod", "metadata": metadata})


class View:
    """What a scaler knows of the two pods `p0` and `p1`: the decision given, and their load."""

    def __init__(self, decision: Decision | None = None, kv: KvChoice | None = None) -> None:
        self._decision, self._kv = decision, kv

    def decision(self, key: Key) -> Decision | None:
        return self._decision

    def kv_choice(self, key: Key) -> KvChoice | None:
        return self._kv

    def last_scale_time(self, key: Key) -> str | None:
        return None

    def forget(self, key: Key) -> None:
        """Nothing is known."""

    def load(self, key: Key):
        return {"p0": sample_of("p0"), "p1": sample_of("p1", running=3)}


class Downloads:
    """Nothing is fetched here."""


def reconcile(objects, image: str = "i", *, view: View | None = None) -> float | None:
    """One pass over `demo`."""
    reconciler = Reconciler(objects, Settings(serving_image=image), view or View(), Downloads())
    return asyncio.run(reconciler.reconcile(DEMO))


def settle(cluster: MemoryCluster, cache: WatchCache, image: str = "i") -> None:
    """As the leader does, until nothing is to be written."""
    for _ in range(5):
        try:
            reconcile(CachedCluster(cluster, cache), image)
        except WriteWantedError:
            reconcile(FreshCluster(cluster, cache), image)
        else:
            return
    raise AssertionError(f"writes without an end: {cluster.asked}")
