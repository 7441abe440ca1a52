"""What is wrong with pods, in one word and with the next step: by their own status, or, where they
are refused before they are there, by their Deployment's. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightllm_operator.timestamps import unix_seconds

__all__ = [
    "PodProblem",
    "fetching_address",
    "find_missing_volumes",
    "find_problem",
    "find_refusal",
    "has_ended",
    "is_ready",
    "is_terminating",
    "unschedulable_since",
]

Object = Mapping[str, Any]

_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_EXIT_CONFIG = 78
_VOLUME_PATIENCE_S = 20
_FETCH_CONTAINER = "fetch"
# reasons of `lightllm-server fetch`, each with what to do about it
_FETCH_HINTS = {
    "AuthenticationFailed": "correct the Secret of spec.model.tokenSecretRef or "
    "spec.model.credentialsSecretRef, or its access to the model",
    "NotFound": "correct spec.model.uri, spec.model.revision or spec.model.endpoint",
    "InsufficientStorage": "raise spec.cache.size, free space in the claim, or use nodes with "
    "larger disks",
    "DownloadFailed": "check DNS, proxy and egress of the cluster, or name a mirror in "
    "spec.model.endpoint; it is tried again",
}


@dataclass(frozen=True, slots=True)
class PodProblem:
    """reason: of the condition; message: object, cause and next step."""

    reason: str
    message: str


def is_terminating(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def has_ended(pod: Object) -> bool:
    """Evicted, not admitted or otherwise over; it stays until it is collected."""
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def is_ready(pod: Object) -> bool:
    """Ready, and not on its way out."""
    return not is_terminating(pod) and _condition(pod, "Ready").get("status") == "True"


def unschedulable_since(pod: Object) -> float | None:
    """Unix seconds since which no node takes the pod, None if one did."""
    condition = _condition(pod, "PodScheduled")
    if condition.get("status") != "False" or condition.get("reason") != "Unschedulable":
        return None
    return unix_seconds(condition["lastTransitionTime"])


def find_missing_volumes(
    pods: Iterable[Object], secrets: Iterable[str], now: float
) -> PodProblem | None:
    """A pod whose Secret or claim is missing waits without an end, and without a word of why.

    secrets: that the pods mount. now: Unix seconds.
    """
    for pod in pods:
        since = _waits_for_volumes_since(pod)
        if since is not None and now - since >= _VOLUME_PATIENCE_S:
            name, named = pod["metadata"]["name"], ", ".join(secrets)
            asked = f"check that Secret {named} has its keys, or " if named else ""
            said = f"pod {name}: its volumes are missing; {asked}see `kubectl describe pod {name}`"
            return PodProblem("SecretNotFound" if named else "VolumesNotMounted", said)
    return None


def _waits_for_volumes_since(pod: Object) -> float | None:
    """Unix seconds since which a pod that has a node cannot start, None if it could."""
    scheduled, started = (
        _condition(pod, kind) for kind in ("PodScheduled", "PodReadyToStartContainers")
    )
    if scheduled.get("status") != "True" or started.get("status") != "False":
        return None
    return unix_seconds(started["lastTransitionTime"])


def fetching_address(pod: Object) -> str | None:
    """Where a pod that fetches its model tells how far it is, None if it does not fetch now."""
    statuses = pod.get("status", {})
    for field in ("initContainerStatuses", "containerStatuses"):
        for status in statuses.get(field, ()):
            if status["name"] == _FETCH_CONTAINER and "running" in status.get("state", {}):
                address: str | None = statuses.get("podIP")
                return address
    return None


def find_problem(pods: Iterable[Object]) -> PodProblem | None:
    """The most telling problem of pods that are not Ready; None while they may just be starting."""
    problems = [problem for pod in pods if not is_ready(pod) and (problem := _problem(pod))]
    order = ("OutOfMemory", *_FETCH_HINTS, "CrashLoopBackOff", "ImagePullFailed", "SecretNotFound")
    ranks = {reason: rank for rank, reason in enumerate(order)}
    return min(problems, key=lambda p: ranks.get(p.reason, len(ranks)), default=None)


def find_refusal(deployment: Object) -> PodProblem | None:
    """Why the API server refuses a Deployment its pods, None if it does not."""
    for condition in deployment.get("status", {}).get("conditions", ()):
        pods_refused = condition["type"] == "ReplicaFailure" and condition["status"] == "True"
        if pods_refused or condition.get("reason") == "ReplicaSetCreateError":
            said = condition.get("message", "")
            return PodProblem(
                "PodsRefused",
                f"deployment {deployment['metadata']['name']}: {said}; a quota or an admission "
                "policy must allow the pods, or the spec ask for less",
            )
    return None


def _problem(pod: Object) -> PodProblem | None:
    name = pod["metadata"]["name"]
    if unschedulable_since(pod) is not None:
        return _scheduling_problem(name, _condition(pod, "PodScheduled").get("message", ""))
    statuses = pod.get("status", {})
    for status in statuses.get("initContainerStatuses", ()):
        if not _has_succeeded(status) and (problem := _container_problem(name, status)):
            return problem
    for status in statuses.get("containerStatuses", ()):
        if problem := _container_problem(name, status):
            return problem
    return None


def _has_succeeded(status: Object) -> bool:
    ended: Object = status.get("state", {}).get("terminated", {})
    return bool(ended.get("exitCode") == 0)


def _scheduling_problem(name: str, message: str) -> PodProblem:
    if "Insufficient" in message and "gpu" in message.lower():
        return PodProblem(
            "GPUsUnavailable",
            f"pod {name}: no node has enough free GPUs ({message}); lower spec.gpu.count or the "
            "number of pods, or add nodes",
        )
    return PodProblem(
        "Unschedulable",
        f"pod {name}: {message}; see `kubectl describe pod {name}`",
    )


def _container_problem(name: str, status: Object) -> PodProblem | None:
    waiting = status.get("state", {}).get("waiting", {})
    reason, said = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _PULL:
        return PodProblem(
            "ImagePullFailed",
            f"pod {name}: image {status.get('image')} cannot be pulled ({said[:300]}); check "
            "spec.image and spec.podTemplate.imagePullSecrets",
        )
    if reason == "CreateContainerConfigError":
        hint = "create the Secret or correct spec.apiKeySecretRef or spec.env"
        return PodProblem("SecretNotFound", f"pod {name}: {said}; {hint}")
    ended = status.get("state", {}).get("terminated") or status.get("lastState", {}).get(
        "terminated"
    )
    if not ended:
        return None
    if ended.get("reason") == "OOMKilled":
        return PodProblem(
            "OutOfMemory",
            f"pod {name}: killed for lack of memory; raise spec.resources.limits.memory, or lower "
            "spec.kvCache.memoryPercent",
        )
    if ended.get("exitCode") == 0 and not status.get("restartCount"):
        return None
    code = ended.get("exitCode")
    if problem := _fetch_problem(name, ended.get("message", "")):
        return problem
    hint = (
        "the server refuses this model or these options; correct the spec"
        if code == _EXIT_CONFIG
        else f"see `kubectl logs --previous {name}`"
    )
    return PodProblem(
        "CrashLoopBackOff",
        f"pod {name} ended with exit code {code}: {_last_words(ended.get('message', ''))}; {hint}",
    )


def _fetch_problem(name: str, message: str) -> PodProblem | None:
    """What the fetch container said at its end, if these are its words."""
    try:
        said = json.loads(message)
        reason, cause = said["reason"], said["message"]
        return PodProblem(reason, f"pod {name}: {cause}; {_FETCH_HINTS[reason]}")
    except (ValueError, KeyError, TypeError):
        return None


def _last_words(message: str) -> str:
    """The last error of the server's JSON log, or the last line."""
    words = ""
    for line in message.strip().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            words = line
            continue
        if isinstance(entry, dict) and "message" in entry:
            words = str(entry["message"])
    return words.strip()[-500:] or "no message"


def _condition(pod: Object, kind: str) -> Object:
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == kind:
            found: Object = condition
            return found
    return {}
