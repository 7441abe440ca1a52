"""The operator's own metrics: named in the docs, and bounded."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import aiohttp
from prometheus_client import REGISTRY

from lightllm_operator import metrics
from lightllm_operator.cluster.scrape import Scraper
from lightllm_operator.names import KIND, SERVER, child_labels
from lightllm_operator.reconcile import Key
from lightllm_operator.scaler import Scaler
from lightllm_operator.watch_cache import WatchCache
from operator_objects import sample_of

DOCS = Path(__file__).parents[2] / "docs" / "operator.md"
DEMO = Key("team", "demo")


def test_the_docs_table_names_exactly_the_metrics():
    ours = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in REGISTRY.collect()
        if family.name.startswith("lightllm_operator")
    }
    assert set(re.findall(r"^\| `(lightllm_operator_\w+)", DOCS.read_text(), re.M)) == ours


class NoPods:
    async def scrape(self, pods):
        return {}


def value(metric, /, **labels):
    return REGISTRY.get_sample_value(metric, labels)


def show(cache, *, deleted=False, version=1, **spec):
    metadata = {
        "namespace": "team",
        "name": "demo",
        "resourceVersion": str(version),
        "uid": "1",
        "generation": 1,
    }
    labels = child_labels("demo", SERVER)
    cache.show(
        "Deployment",
        {"metadata": {**metadata, "labels": labels}, "spec": {"replicas": 3}},
        deleted=deleted,
    )
    spec = {"model": {"uri": "file:///model"}, **spec}
    cache.show(KIND, {"metadata": metadata, "spec": spec}, deleted=deleted)


def test_series_of_a_resource_go_with_it():
    async def scenario():
        cache = WatchCache()
        scaler = Scaler(cache, NoPods(), lambda key: None)
        series = {"namespace": "team", "name": "demo"}
        show(cache)
        await scaler.round()
        assert value("lightllm_operator_desired_replicas", **series) == 3
        assert value("lightllm_operator_ready_replicas", **series) == 0
        show(cache, deleted=True, version=2)
        await scaler.round()
        for metric in (metrics.QUEUE_DEPTH, metrics.DESIRED_REPLICAS, metrics.READY_REPLICAS):
            assert metric.collect()[0].samples == []
        assert scaler.decision(DEMO) is None

    asyncio.run(scenario())


def test_a_deletion_during_a_round_leaves_no_series():
    async def scenario():
        cache = WatchCache()
        show(cache)

        class Deletes:
            async def scrape(self, pods):
                show(cache, deleted=True, version=2)
                return {}

        scaler = Scaler(cache, Deletes(), lambda key: None)
        await scaler.round()
        assert metrics.QUEUE_DEPTH.collect()[0].samples == []

    asyncio.run(scenario())


def test_a_decision_is_counted_once_however_long_its_write_takes():
    class Full:
        """One pod with a long queue, or none that answers."""

        def __init__(self):
            self.answers = True

        async def scrape(self, pods):
            full = {pod: sample_of(pod, waiting=100, running=16) for pod in pods}
            return full if self.answers else {}

    async def scenario():
        cache, pods = WatchCache(), Full()
        rule = {"stabilizationWindowSeconds": 0, "maxPods": 4, "periodSeconds": 60}
        scaling = {"minReplicas": 1, "maxReplicas": 4, "targetQueueDepth": 4, "scaleUp": rule}
        show(cache, autoscaling={**scaling, "tolerancePercent": 10, "scaleDown": rule})
        metadata = {"namespace": "team", "name": "demo-a", "resourceVersion": "2"}
        labels = child_labels("demo", SERVER)
        ready = [{"type": "Ready", "status": "True"}]
        status = {"podIP": "10.0.0.1", "conditions": ready}
        cache.show("Pod", {"metadata": {**metadata, "labels": labels}, "status": status})
        scaler = Scaler(cache, pods, lambda key: None)
        before = {way: decisions(way) for way in ("up", "down", "hold")}
        for _ in range(3):
            await scaler.round()
        assert decisions("up") == before["up"] + 1
        pods.answers = False
        for _ in range(3):
            await scaler.round()
        assert decisions("hold") == before["hold"] + 1
        assert decisions("down") == before["down"]

    def decisions(way):
        return value("lightllm_operator_scale_decisions_total", direction=way)

    asyncio.run(scenario())


def test_a_scrape_that_fails_is_counted():
    async def scenario():
        before = value("lightllm_operator_scrape_failures_total")
        count = value("lightllm_operator_scrape_seconds_count")
        async with aiohttp.ClientSession() as session:
            # port 9 of this machine: nobody listens
            assert await Scraper(session, port=9).scrape({"demo-a": "127.0.0.1"}) == {}
        assert value("lightllm_operator_scrape_failures_total") == before + 1
        assert value("lightllm_operator_scrape_seconds_count") == count + 1

    asyncio.run(scenario())
