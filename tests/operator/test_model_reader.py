"""The Jobs of a model, step by step: claim, fetch, check, and what is told meanwhile."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from lightllm_operator import cache, manifests
from lightllm_operator.cluster.progress import ProgressReader
from lightllm_operator.errors import ApiError, RefusedError
from lightllm_operator.facts import DownloadProgress
from lightllm_operator.model_reader import ModelReader, ModelReading
from lightllm_operator.settings import Settings
from lightllm_server.fetch.progress import Progress
from operator_objects import ago, spec_of

SETTINGS = Settings(serving_image="server:1")
REPORT = {
    "family": "llama",
    "heads": 4,
    "kv_heads": 2,
    "valid_tp": [1, 2],
    "kv_bytes_per_token": {"model": 1, "int8": 1},
    "int8_kv": {"supported": True, "reason": ""},
    "weight_bytes": 1,
    "commit": "c0ffee",
    "errors": [],
}


class MemoryCluster:
    """Objects by kind and name; what the controllers would do is done by the tests."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict] = {}
        self.pods: list[dict] = []
        self.refusal: ApiError | None = None
        self._num_made = 0

    async def get(self, _version, kind, _namespace, name):
        return self.objects.get((kind, name))

    async def list(self, _version, _kind, _namespace, labels, *, cached=False):
        return [pod for pod in self.pods if labels.items() <= pod["metadata"]["labels"].items()]

    async def apply(self, manifest, **_):
        if self.refusal is not None:
            raise self.refusal
        self._num_made += 1
        made = {"uid": f"uid-{self._num_made}", "creationTimestamp": ago(0)}
        metadata = {**manifest["metadata"], **made}
        made = {**manifest, "metadata": metadata}
        return self.objects.setdefault((manifest["kind"], metadata["name"]), made)

    async def delete(self, _version, kind, _namespace, name):
        del self.objects[kind, name]

    def names(self, kind: str) -> list[str]:
        return [name for found, name in self.objects if found == kind]

    def age(self, seconds: float) -> None:
        """All was made so long ago."""
        for body in self.objects.values():
            body["metadata"]["creationTimestamp"] = ago(seconds)

    def end(self, job: str, condition: str, seconds_ago: float = 0) -> None:
        conditions = [{"type": condition, "status": "True", "lastTransitionTime": ago(seconds_ago)}]
        self.objects["Job", job]["status"] = {"conditions": conditions}

    def add_pod(self, job: str, *, phase: str = "Running", **status) -> None:
        labels = self.objects["Job", job]["spec"]["template"]["metadata"]["labels"]
        labels = {**labels, "batch.kubernetes.io/job-name": job}
        name = f"{job}-{len(self.pods)}"
        self.pods.append(
            {"metadata": {"name": name, "labels": labels}, "status": {"phase": phase, **status}}
        )


class Downloads:
    async def read(self, pod, address):
        assert address == "10.0.0.9"
        return DownloadProgress(pod=pod, done=1, total=4)


def ended(container: str, code: int, **words):
    state = {"terminated": {"exitCode": code, "message": json.dumps(words)}}
    return [{"name": container, "image": "i", "restartCount": 0, "state": state}]


RUNNING = [{"name": "fetch", "image": "i", "restartCount": 0, "state": {"running": {}}}]
CACHED = {"model": {"uri": "hf://org/name"}, "cache": {"size": "9Gi"}}


@pytest.fixture
def cluster():
    return MemoryCluster()


@pytest.fixture
def read(cluster):
    def once(kept: str = "", failing_s: float = 0.0, **spec):
        reader = ModelReader(cluster, SETTINGS, Downloads())
        return asyncio.run(reader.read(spec_of(**spec), kept, failing_s))

    return once


def test_claim_then_fetch_then_check_then_facts(cluster, read):
    fetch = cache.fetch_name(spec_of(**CACHED), SETTINGS)
    check = manifests.check_name(spec_of(**CACHED), SETTINGS)
    assert read(**CACHED).download == DownloadProgress(pod=fetch)
    assert cluster.names("PersistentVolumeClaim") == ["demo-cache"]
    assert cluster.names("Job") == [fetch]
    cluster.add_pod(fetch, containerStatuses=RUNNING, podIP="10.0.0.9")
    assert read(**CACHED).download == DownloadProgress(pod=f"{fetch}-0", done=1, total=4)
    assert cluster.names("Job") == [fetch]
    cluster.end(fetch, "Complete")
    assert read(**CACHED) == ModelReading()
    assert cluster.names("Job") == [fetch, check]
    cluster.add_pod(check, phase="Succeeded", containerStatuses=ended("check", 0, **REPORT))
    reading = read(**CACHED)
    assert (reading.model.heads, reading.model.commit) == (4, "c0ffee")
    # with the report on the Deployment no Job is needed any more
    del cluster.objects["Job", fetch], cluster.objects["Job", check]
    assert read(reading.report, **CACHED) == reading
    assert cluster.names("Job") == []


def test_without_a_cache_there_is_no_claim_and_no_fetch(cluster, read):
    read(model=CACHED["model"])
    assert cluster.names("PersistentVolumeClaim") == []
    assert cluster.names("Job") == [manifests.check_name(spec_of(model=CACHED["model"]), SETTINGS)]


def test_a_cache_that_was_deleted_is_filled_again(cluster, read):
    read(**CACHED)
    [fetch] = cluster.names("Job")
    cluster.age(50)
    cluster.end(fetch, "Complete")
    read(**CACHED)
    [_, check] = cluster.names("Job")
    cluster.add_pod(check, phase="Succeeded", containerStatuses=ended("check", 0, **REPORT))
    reading = read(**CACHED)
    assert read(reading.report, **CACHED) == reading
    del cluster.objects["PersistentVolumeClaim", "demo-cache"]
    # the Job that is there has filled the other claim
    again = read(reading.report, **CACHED)
    assert (again.model, again.download) == (None, DownloadProgress(pod=fetch))
    read(reading.report, **CACHED)
    assert cluster.objects["Job", fetch]["metadata"]["creationTimestamp"] > ago(40)
    cluster.end(fetch, "Complete")
    filled = read(reading.report, **CACHED)
    assert filled.model == reading.model
    assert read(filled.report, **CACHED) == filled


def test_a_report_of_an_earlier_operator_names_no_claim_and_is_kept(cluster, read):
    read(**CACHED)
    kept = json.dumps({"job": manifests.check_name(spec_of(**CACHED), SETTINGS), "report": REPORT})
    assert read(kept, **CACHED).report == kept


def test_a_failed_fetch_is_told_and_made_again_after_a_while(cluster, read):
    read(**CACHED)
    [job] = cluster.names("Job")
    words = {"reason": "AuthenticationFailed", "message": "refuses the token"}
    cluster.add_pod(job, phase="Failed", containerStatuses=ended("fetch", 77, **words))
    cluster.end(job, "Failed", seconds_ago=5)
    problem = read(**CACHED).problem
    assert problem.reason == "AuthenticationFailed"
    assert "refuses the token" in problem.message
    assert cluster.names("Job") == [job]
    cluster.end(job, "Failed", seconds_ago=90)
    assert read(**CACHED).problem.reason == "AuthenticationFailed"
    assert cluster.names("Job") == []
    cluster.pods.clear()
    assert read(**CACHED).download is not None
    assert cluster.names("Job") == [job]


@pytest.mark.parametrize(
    ("failing_s", "ended_s", "made_again"),
    [(0, 50, False), (100, 70, True), (600, 200, False), (600, 310, True), (9000, 610, True)],
)
def test_the_pauses_between_tries_grow_with_the_time_that_it_fails(
    cluster, read, failing_s, ended_s, made_again
):
    read(**CACHED)
    [job] = cluster.names("Job")
    cluster.end(job, "Failed", seconds_ago=ended_s)
    read(failing_s=failing_s, **CACHED)
    assert (cluster.names("Job") == []) == made_again


def test_while_another_pod_tries_the_failure_before_is_history(cluster, read):
    read(**CACHED)
    [job] = cluster.names("Job")
    words = {"reason": "DownloadFailed", "message": "no answer"}
    cluster.add_pod(job, phase="Failed", containerStatuses=ended("fetch", 75, **words))
    assert read(**CACHED).problem.reason == "DownloadFailed"
    cluster.add_pod(job, containerStatuses=RUNNING, podIP="10.0.0.9")
    reading = read(**CACHED)
    assert reading.problem is None
    assert reading.download.total == 4


def test_a_check_whose_fetch_failed_says_why(cluster, read):
    read(model=CACHED["model"])
    [job] = cluster.names("Job")
    words = {"reason": "NotFound", "message": "no such repository"}
    cluster.add_pod(job, phase="Failed", initContainerStatuses=ended("fetch", 66, **words))
    assert read(model=CACHED["model"]).problem.reason == "NotFound"


@pytest.mark.parametrize(("seconds", "told"), [(5, False), (30, True)])
def test_a_missing_secret_is_told_after_a_while(cluster, read, seconds, told):
    spec = {"model": {**CACHED["model"], "tokenSecretRef": {"name": "hub"}}}
    read(**spec)
    [job] = cluster.names("Job")
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(seconds)},
        {
            "type": "PodReadyToStartContainers",
            "status": "False",
            "lastTransitionTime": ago(seconds),
        },
    ]
    cluster.add_pod(job, phase="Pending", conditions=conditions)
    problem = read(**spec).problem
    assert (problem is not None) == told
    if problem is not None:
        assert problem.reason == "SecretNotFound"
        assert "Secret hub" in problem.message


@pytest.mark.parametrize("spec", [{}, CACHED], ids=["check", "fetch"])
@pytest.mark.parametrize(("seconds", "told"), [(5, False), (40, True)])
def test_a_job_whose_pod_is_refused_is_told_after_a_while(cluster, read, spec, seconds, told):
    read(**spec)
    [job] = cluster.names("Job")
    cluster.age(seconds)
    problem = read(**spec).problem
    assert (problem is not None) == told
    if problem is not None:
        assert problem.reason == "PodMissing"
        assert f"kubectl describe job {job}" in problem.message
    cluster.add_pod(job)
    assert read(**spec).problem is None


@pytest.mark.parametrize(
    ("uri", "seconds", "made_again", "again_s"),
    [
        ("file:///models/x", 3000, False, None),
        ("pvc://models/x", 20, False, 40),
        ("pvc://models/x", 90, True, None),
        ("hf://org/name", 90, False, 510),
        ("hf://org/name", 700, True, None),
    ],
)
def test_a_model_that_cannot_be_served_is_looked_at_again_where_it_may_change(
    cluster, read, uri, seconds, made_again, again_s
):
    read(model={"uri": uri})
    [job] = cluster.names("Job")
    cluster.add_pod(job, phase="Succeeded", containerStatuses=ended("check", 0, errors=["odd"]))
    cluster.end(job, "Complete", seconds_ago=seconds)
    found = read(model={"uri": uri})
    assert found.model.errors == ("odd",)
    assert (cluster.names("Job") == []) == made_again
    assert found.again_s == (again_s and pytest.approx(again_s, abs=10))


def test_a_check_that_ends_without_a_report_is_told_and_made_again(cluster, read):
    read()
    [job] = cluster.names("Job")
    cluster.add_pod(job, phase="Succeeded", containerStatuses=ended("check", 0))
    cluster.pods[0]["status"]["containerStatuses"][0]["state"]["terminated"].pop("message")
    cluster.end(job, "Complete", seconds_ago=5)
    assert read().problem.reason == "CheckFailed"
    cluster.end(job, "Complete", seconds_ago=90)
    assert read().problem.reason == "CheckFailed"
    assert cluster.names("Job") == []


def test_a_claim_of_somebody_else_is_left_alone(cluster, read):
    claim = {"metadata": {"name": "demo-cache", "ownerReferences": []}, "spec": {}}
    cluster.objects["PersistentVolumeClaim", "demo-cache"] = claim
    with pytest.raises(RefusedError, match=r"spec\.cache\.claimName"):
        read(**CACHED)
    assert cluster.objects["PersistentVolumeClaim", "demo-cache"] is claim


@pytest.mark.parametrize(
    ("status", "raised"), [(422, RefusedError), (403, RefusedError), (500, ApiError)]
)
def test_a_claim_that_is_refused(cluster, read, status, raised):
    cluster.refusal = ApiError(status, "the class cannot grow")
    with pytest.raises(raised, match="cannot grow"):
        read(**CACHED)


def test_the_progress_of_the_server_is_what_the_operator_reads():
    progress = Progress()
    progress.start(done=3, total=9)

    async def ask(port: int, address: str):
        async with aiohttp.ClientSession() as session:
            return await ProgressReader(session, port=port).read("p0", address)

    with progress.reported(0) as port:
        found = asyncio.run(ask(port, "127.0.0.1"))
        assert found == DownloadProgress(pod="p0", done=3, total=9)
    assert asyncio.run(ask(port, "127.0.0.1")) is None
