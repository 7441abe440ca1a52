"""A resource's model: fetched into its cache by one Job, read by another; what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightllm_operator import cache, manifests
from lightllm_operator.cluster.client import Objects, apply_child
from lightllm_operator.cluster.progress import ProgressReader
from lightllm_operator.containment import contains
from lightllm_operator.errors import ApiError, RefusedError
from lightllm_operator.facts import DownloadProgress, ModelFacts
from lightllm_operator.model_files import is_cached
from lightllm_operator.names import CHECK, FETCH, child_labels
from lightllm_operator.pods import (
    PodProblem,
    fetching_address,
    find_missing_volumes,
    find_problem,
    is_terminating,
)
from lightllm_operator.settings import Settings
from lightllm_operator.spec import DeploymentSpec
from lightllm_operator.timestamps import unix_seconds

__all__ = ["ModelReader", "ModelReading", "is_owned"]

Object = dict[str, Any]

# seconds until a Job is made again: one that failed, at first and at the most; one that found a
# model that cannot be served
_RETRY_S, _LONGEST_RETRY_S, _RECHECK_S = 60, 600, 600
_POD_PATIENCE_S = 30


class ModelReading(NamedTuple):
    """Facts with the report to keep, or why there are none yet. again_s: seconds until a model that
    cannot be served is due to be looked at again."""

    model: ModelFacts | None = None
    report: str = ""
    problem: PodProblem | None = None
    download: DownloadProgress | None = None
    again_s: float | None = None


class ModelReader:
    """Makes the claim and the Jobs that a model needs before it can be served."""

    def __init__(self, cluster: Objects, settings: Settings, downloads: ProgressReader) -> None:
        self._cluster = cluster
        self._settings = settings
        self._downloads = downloads

    async def read(self, spec: DeploymentSpec, kept: str, failing_s: float = 0.0) -> ModelReading:
        """kept: the report that the serving Deployment was made with, "" without one. failing_s:
        for how long the model could not be read; the pauses between the tries grow with it.

        Raises RefusedError where the claim of the cache, or a Job, cannot be made.
        """
        claim = await self._apply_claim(spec)
        if (known := self.known(spec, kept, claim)).model is not None:
            return known
        retry_s = min(max(_RETRY_S, failing_s / 2), _LONGEST_RETRY_S)
        if is_cached(spec) and (fetching := await self._fetch(spec, claim, retry_s)) is not None:
            return fetching
        cluster, namespace = self._cluster, spec.namespace
        name = manifests.check_name(spec, self._settings)
        job = await cluster.get("batch/v1", "Job", namespace, name)
        if job is None:
            await apply_child(cluster, manifests.check_job(spec, self._settings))
            return ModelReading()
        pods = await self._pods_of(spec, CHECK, name)
        for pod in pods:
            if text := _termination_message(pod):
                try:
                    model = ModelFacts.from_report(text)
                except ValueError:
                    continue
                again_s = None
                if model.errors and not spec.model.uri.startswith("file://"):
                    # an image stays as it is, all else may be mended; a claim is often filled
                    # beside
                    is_claim = spec.model.uri.startswith("pvc://")
                    patience = _RETRY_S if is_claim else _RECHECK_S
                    again_s = await self._again_later(job, spec, patience)
                noted = {"job": name, **_uid(claim), "report": json.loads(text)}
                return ModelReading(model, json.dumps(noted), again_s=again_s)
        problem = await self._job_problem(job, spec, pods, retry_s, "CheckFailed")
        return ModelReading(problem=problem)

    def known(self, spec: DeploymentSpec, kept: str, claim: Object | None = None) -> ModelReading:
        """By the report alone: empty where it is of another model or image, or where another claim
        was filled, so that the model is not in this one."""
        noted = json.loads(kept) if kept else {}
        if noted.get("job") != manifests.check_name(spec, self._settings):
            return ModelReading()
        # a report of an earlier operator names no claim
        if claim is not None and not {**_uid(claim), **noted}.items() >= _uid(claim).items():
            return ModelReading()
        return ModelReading(ModelFacts.from_report(json.dumps(noted["report"])), kept)

    async def download(self, pods: list[Object]) -> DownloadProgress | None:
        """Of the first pod that fetches its model and answers."""
        for pod in pods:
            if not is_terminating(pod) and (address := fetching_address(pod)):
                found = await self._downloads.read(pod["metadata"]["name"], address)
                if found is not None:
                    return found
        return None

    async def _fetch(
        self, spec: DeploymentSpec, claim: Object | None, retry_s: float
    ) -> ModelReading | None:
        """How the Job that fills the cache does, None when it is full. claim: the managed one."""
        name = cache.fetch_name(spec, self._settings)
        job = await self._cluster.get("batch/v1", "Job", spec.namespace, name)
        if job is not None and claim is not None and _made(job) < _made(claim):
            # it filled a claim that is gone
            await self._cluster.delete("batch/v1", "Job", spec.namespace, name)
            return ModelReading(download=DownloadProgress(pod=name))
        if job is None:
            job = await apply_child(self._cluster, cache.fetch_job(spec, self._settings))
        if _has_condition(job, "Complete"):
            return None
        pods = await self._pods_of(spec, FETCH, name)
        problem = await self._job_problem(job, spec, pods, retry_s, "DownloadFailed")
        if problem is not None:
            return ModelReading(problem=problem)
        return ModelReading(download=await self.download(pods) or DownloadProgress(pod=name))

    async def _job_problem(
        self, job: Object, spec: DeploymentSpec, pods: list[Object], retry_s: float, reason: str
    ) -> PodProblem | None:
        """Of a Job's pods, or with that reason of the Job; one that ended is made again later."""
        name, failed = job["metadata"]["name"], _has_condition(job, "Failed")
        # while another pod tries, what ended the one before is history
        trying = [pod for pod in pods if pod.get("status", {}).get("phase") != "Failed"]
        problem = find_problem(pods if failed else trying or pods)
        if problem is None:
            problem = find_missing_volumes(trying, spec.secrets, time.time())
        if failed or _has_condition(job, "Complete"):
            await self._again_later(job, spec, retry_s)
            said = "failed" if failed else "ended without a report"
            return problem or PodProblem(
                reason, f"job {name} {said}; see `kubectl logs job/{name}`"
            )
        if not pods and time.time() - _made(job) > _POD_PATIENCE_S:
            said = f"job {name} has no pod: a quota or an admission policy may refuse it; see "
            return PodProblem("PodMissing", f"{said}`kubectl describe job {name}`")
        return problem

    async def _again_later(
        self, job: Object, spec: DeploymentSpec, patience: float
    ) -> float | None:
        """What was not there may be there later: let the Job be made again. The seconds until that
        is due, None once it is done: the Job's end is an event of its own.
        """
        ends = (
            condition["lastTransitionTime"]
            for condition in job.get("status", {}).get("conditions", ())
            if condition["status"] == "True"
        )
        since = max(ends, default=job["metadata"]["creationTimestamp"])
        left = patience - (time.time() - unix_seconds(since))
        if left > 0:
            return left
        await self._cluster.delete("batch/v1", "Job", spec.namespace, job["metadata"]["name"])
        return None

    async def _pods_of(self, spec: DeploymentSpec, component: str, job: str) -> list[Object]:
        labels = {**child_labels(spec.name, component), "batch.kubernetes.io/job-name": job}
        return await self._cluster.list("v1", "Pod", spec.namespace, labels, cached=True)

    async def _apply_claim(self, spec: DeploymentSpec) -> Object | None:
        """The claim that is made for the resource, if it is to have one."""
        wanted = cache.cache_claim(spec)
        if wanted is None:
            return None
        name = wanted["metadata"]["name"]
        live = await self._cluster.get("v1", "PersistentVolumeClaim", spec.namespace, name)
        if live is not None and not is_owned(live, spec.uid):
            said = f"claim {name} exists and is not this resource's; set spec.cache.claimName to it"
            raise RefusedError("NameTaken", said)
        if live is None or not contains(live, wanted):
            try:
                return await self._cluster.apply(wanted)
            except ApiError as error:
                if error.status not in (403, 422):
                    raise
                raise RefusedError("InvalidCache", f"{error}; correct spec.cache") from error
        return live


def is_owned(child: Object, uid: str) -> bool:
    return any(owner["uid"] == uid for owner in child["metadata"].get("ownerReferences", ()))


def _made(body: Object) -> float:
    """Unix seconds of its creation."""
    return unix_seconds(body["metadata"]["creationTimestamp"])


def _uid(claim: Object | None) -> dict[str, str]:
    """As a report notes it."""
    return {} if claim is None else {"claim": claim["metadata"]["uid"]}


def _has_condition(job: Mapping[str, Any], kind: str) -> bool:
    conditions = job.get("status", {}).get("conditions", ())
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def _termination_message(pod: Object) -> str:
    for status in pod.get("status", {}).get("containerStatuses", ()):
        ended = status.get("state", {}).get("terminated", {})
        if message := ended.get("message"):
            text: str = message
            return text
    return ""
