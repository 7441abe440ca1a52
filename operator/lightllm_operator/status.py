"""The resource's status: conditions and counts. Pure.

Every condition that is not as wished names the object and the next step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightllm_operator.autoscale import Decision
from lightllm_operator.errors import RefusedError, SpecError
from lightllm_operator.facts import DownloadProgress, ModelFacts, Pinned
from lightllm_operator.names import ANNOTATION_UPGRADE, selector
from lightllm_operator.pods import PodProblem, find_problem, find_refusal, is_ready
from lightllm_operator.sizing import KvChoice
from lightllm_operator.spec import DeploymentSpec

__all__ = ["Observation", "summarise"]

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one reconcile saw and decided.

    check_problem: why the model could not be read. download: of the model, while it lasts.
    refused: why the spec cannot be run. kv: what the servers say of their KV cache. update: what a
    newer operator would change, or "".
    """

    spec: DeploymentSpec
    desired: int
    model: ModelFacts | None = None
    check_problem: PodProblem | None = None
    download: DownloadProgress | None = None
    refused: RefusedError | SpecError | None = None
    pinned: Pinned | None = None
    deployment: Object | None = None
    pods: Sequence[Object] = ()
    decision: Decision | None = None
    kv: KvChoice | None = None
    last_scale_time: str | None = None
    update: str = ""


@dataclass(frozen=True, slots=True)
class _Condition:
    type: str
    status: str
    reason: str
    message: str

    @classmethod
    def read(cls, told: Object) -> _Condition:
        """As it stands in a status."""
        return cls(told["type"], told["status"], told["reason"], told["message"])


def summarise(seen: Observation, before: Object, now: str) -> dict[str, Any]:
    """The new status. before: the present one, whose transition times stay; now: RFC 3339."""
    spec = seen.spec
    counts = (seen.deployment or {}).get("status", {})
    status: dict[str, Any] = {
        "observedGeneration": spec.generation,
        "replicas": counts.get("replicas", 0),
        "readyReplicas": sum(map(is_ready, seen.pods)),
        "updatedReplicas": counts.get("updatedReplicas", 0),
        "desiredReplicas": seen.desired,
        "selector": ",".join(f"{key}={value}" for key, value in selector(spec.name).items()),
        "url": _url(spec),
    }
    if seen.pinned is not None:
        status["tensorParallelSize"] = seen.pinned.tensor_parallel_size
        kv = _kv_cache(seen.pinned, seen.kv, spec.generation, before)
        status["kvCacheDtype"], status["kvCacheReason"] = kv.dtype, kv.reason
    if seen.decision is not None:
        status["queueDepth"] = seen.decision.waiting
    elif "queueDepth" in before:
        # of an earlier operator, until this one has scraped
        status["queueDepth"] = before["queueDepth"]
    if seen.model is not None and not seen.model.errors:
        status["model"] = {
            "family": seen.model.family,
            "heads": seen.model.heads,
            "kvHeads": seen.model.kv_heads,
            "validTensorParallelSizes": [size for size in seen.model.valid_tp if size <= 16],
            "weightBytes": seen.model.weight_bytes,
            "kvBytesPerToken": seen.model.kv_bytes_per_token,
        }
    if spec.autoscaling is not None and seen.decision is not None:
        status["autoscaling"] = _autoscaling(seen.decision, seen.last_scale_time, before)
    elif spec.autoscaling is not None and "autoscaling" in before:
        status["autoscaling"] = before["autoscaling"]
    conditions = _conditions(seen, before)
    status["conditions"] = [_dated(c, spec.generation, before, now) for c in conditions]
    return status


def _kv_cache(
    pinned: Pinned, resolved: KvChoice | None, generation: int, before: Object
) -> KvChoice:
    """What the pods were told to use, or where they were to choose, what they chose."""
    told = KvChoice(pinned.kv_dtype, pinned.kv_reason)
    if told.dtype != "auto":
        return told
    if resolved is not None:
        return resolved
    if before.get("observedGeneration") == generation and "kvCacheDtype" in before:
        # of an earlier operator, until this one has scraped
        return KvChoice(before["kvCacheDtype"], before["kvCacheReason"])
    return told


def _url(spec: DeploymentSpec) -> str:
    port = "" if spec.service.port == 80 else f":{spec.service.port}"
    return f"http://{spec.name}.{spec.namespace}.svc{port}"


def _autoscaling(decision: Decision, last_scale: str | None, before: Object) -> dict[str, Any]:
    values = {
        "waiting": decision.waiting,
        "running": decision.running,
        "capacity": f"{decision.capacity:.1f}",
        "lastReason": decision.reason,
    }
    # of an earlier operator, if this one has not scaled yet
    time = last_scale or before.get("autoscaling", {}).get("lastScaleTime")
    if time is not None:
        values["lastScaleTime"] = time
    return values


def _conditions(seen: Observation, before: Object) -> list[_Condition]:
    config, model = _standing_verdict(seen, before) or (_config_valid(seen), _model_available(seen))
    progressing, available = _progressing(seen), _available(seen)
    conditions = [
        _ready(seen, config, model, available),
        config,
        model,
        progressing,
        available,
        *_scaling(seen, before),
    ]
    if seen.pinned is not None and seen.spec.gpu.count:
        conditions.append(_gpus_underused(seen.spec.gpu.count, seen.pinned))
    if seen.update:
        adopted = seen.pinned is not None and seen.pinned.is_adopted
        conditions.append(
            _Condition(
                "UpdateAvailable",
                "True",
                "PinLost" if adopted else "NewerOperator",
                f"{seen.update}; edit the spec, or set the annotation {ANNOTATION_UPGRADE} to a "
                "new value, to take it",
            )
        )
    return conditions


def _standing_verdict(seen: Observation, before: Object) -> tuple[_Condition, _Condition] | None:
    """ConfigValid and ModelAvailable as they were, while a model that cannot be served, or could
    not be read, is only looked at again; the first bytes of a download are news."""
    if seen.model or seen.check_problem or seen.refused:
        return None
    told = {condition["type"]: condition for condition in before.get("conditions", ())}
    config, model = told.get("ConfigValid"), told.get("ModelAvailable")
    if config is None or model is None or model["observedGeneration"] != seen.spec.generation:
        return None
    unread = model["status"] == "False" and not (seen.download and seen.download.done)
    if config["reason"] != "UnsupportedModel" and not unread:
        return None
    return _Condition.read(config), _Condition.read(model)


def _config_valid(seen: Observation) -> _Condition:
    if isinstance(seen.refused, RefusedError):
        return _Condition("ConfigValid", "False", seen.refused.reason, str(seen.refused))
    if seen.refused is not None:
        return _Condition("ConfigValid", "False", "InvalidSpec", str(seen.refused))
    if seen.model is None:
        return _Condition("ConfigValid", "Unknown", "Checking", "the model's files are being read")
    return _Condition("ConfigValid", "True", "Valid", "the spec can be run as written")


def _model_available(seen: Observation) -> _Condition:
    uri = seen.spec.model.uri
    if seen.check_problem is not None:
        problem = seen.check_problem
        return _Condition("ModelAvailable", "False", problem.reason, problem.message)
    if seen.model is None and isinstance(seen.refused, SpecError):
        message = f"{uri} is not read before spec is corrected"
        return _Condition("ModelAvailable", "Unknown", "NotChecked", message)
    if seen.model is None and seen.download is not None:
        message = f"{uri} is being fetched: {_amount(seen.download)}"
        return _Condition("ModelAvailable", "Unknown", "Downloading", message)
    if seen.model is None:
        return _Condition("ModelAvailable", "Unknown", "Checking", f"{uri} is being read")
    return _Condition("ModelAvailable", "True", "Found", f"{uri} was read")


def _amount(download: DownloadProgress) -> str:
    if not download.total:
        return f"{download.pod} starts"
    percent = 100 * download.done // download.total
    done, total = (f"{num_bytes / 1e6:.0f}" for num_bytes in (download.done, download.total))
    return f"{percent} %, {done} of {total} MB"


def _progressing(seen: Observation) -> _Condition:
    deployment = seen.deployment
    if deployment is None:
        return _Condition("Progressing", "False", "NotStarted", "there is no Deployment yet")
    counts = deployment.get("status", {})
    for condition in counts.get("conditions", ()):
        if condition["type"] == "Progressing" and condition["reason"] == "ProgressDeadlineExceeded":
            return _Condition(
                "Progressing",
                "False",
                "ProgressDeadlineExceeded",
                f"deployment {seen.spec.name}: {condition['message']}; see Available for the cause",
            )
    observed = counts.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    updated, total = counts.get("updatedReplicas", 0), counts.get("replicas", 0)
    if not observed or updated < min(seen.desired, 1) or total > updated:
        old = max(0, total - updated)
        message = f"{updated} of {seen.desired} pods are of the new revision, {old} of an old one"
        return _Condition("Progressing", "True", "NewRevision", message)
    return _Condition("Progressing", "False", "RolloutComplete", "all pods are of one revision")


def _available(seen: Observation) -> _Condition:
    ready = sum(map(is_ready, seen.pods))
    least = seen.spec.autoscaling.min_replicas if seen.spec.autoscaling else min(seen.desired, 1)
    problem = find_problem(seen.pods) or find_refusal(seen.deployment or {})
    if ready >= least:
        message = f"{ready} of {seen.desired} pods serve"
        if problem is not None:
            message += f"; {problem.message}"
        return _Condition("Available", "True", "MinimumReplicasAvailable", message)
    if problem is not None:
        return _Condition("Available", "False", problem.reason, problem.message)
    message = f"{ready} of at least {least} pods serve, the others start: see `kubectl logs`"
    if seen.download is not None:
        message = f"pod {seen.download.pod} fetches the model: {_amount(seen.download)}"
    elif seen.deployment is None:
        message = "no pods are made before ConfigValid and ModelAvailable are True"
    return _Condition("Available", "False", "NoReadyReplicas", message)


def _scaling(seen: Observation, before: Object) -> list[_Condition]:
    if seen.spec.autoscaling is None:
        return [_Condition("ScalingActive", "False", "Disabled", "spec.autoscaling is not set")]
    decision = seen.decision
    if decision is None:
        starting = _Condition("ScalingActive", "Unknown", "Starting", "no scrape was made yet")
        return _scaling_before(before) or [starting]
    if decision.held == "MetricsUnavailable":
        message = f"the count is held at {seen.desired}: {decision.reason}; see the pods' logs"
        active = _Condition("ScalingActive", "False", decision.held, message)
    elif decision.held:
        message = "the operator started lately: no pod is taken away for one window"
        active = _Condition("ScalingActive", "True", decision.held, message)
    else:
        active = _Condition("ScalingActive", "True", "ReadyForScaling", decision.reason)
    if decision.limited:
        bounds = seen.spec.autoscaling
        message = f"{seen.desired} pods, bounds {bounds.min_replicas} to {bounds.max_replicas}"
        return [active, _Condition("ScalingLimited", "True", decision.limited, message)]
    return [active, _Condition("ScalingLimited", "False", "WithinRange", "nothing holds it back")]


def _scaling_before(before: Object) -> list[_Condition]:
    """What an earlier operator found, which holds until this one has scraped."""
    found = [
        _Condition.read(condition)
        for condition in before.get("conditions", ())
        if condition["type"] in ("ScalingActive", "ScalingLimited")
    ]
    return [] if any(condition.reason == "Disabled" for condition in found) else found


def _gpus_underused(count: int, pinned: Pinned) -> _Condition:
    idle = count - pinned.tensor_parallel_size
    if idle <= 0:
        return _Condition("GPUsUnderused", "False", "AllUsed", f"all {count} GPUs are used")
    message = (
        f"{idle} of {count} GPUs of each pod idle, since the model does not split over more than "
        f"{pinned.tensor_parallel_size}; set spec.gpu.count to {pinned.tensor_parallel_size}"
    )
    return _Condition("GPUsUnderused", "True", "TensorParallelBelowCount", message)


def _ready(
    seen: Observation, config: _Condition, model: _Condition, available: _Condition
) -> _Condition:
    ready = sum(map(is_ready, seen.pods))
    serving = f"; {ready} pods of the earlier spec go on serving" if ready else ""
    if config.status == "False":
        return _Condition("Ready", "False", "ConfigInvalid", config.message + serving)
    if seen.spec.suspend:
        return _Condition("Ready", "False", "Suspended", "spec.suspend is set: no pods run")
    if seen.desired == 0:
        return _Condition("Ready", "False", "ScaledToZero", "spec.replicas is 0")
    if model.status == "False":
        return _Condition("Ready", "False", model.reason, model.message + serving)
    if model.status == "Unknown" and not ready:
        fetched = model.reason == "Downloading"
        return _Condition(
            "Ready", "False", "Downloading" if fetched else "Progressing", model.message
        )
    if available.status == "True":
        return _Condition("Ready", "True", "Serving", available.message)
    reason = "Progressing" if available.reason == "NoReadyReplicas" else available.reason
    return _Condition("Ready", "False", reason, available.message)


def _dated(condition: _Condition, generation: int, before: Object, now: str) -> dict[str, Any]:
    time = now
    for old in before.get("conditions", ()):
        if old["type"] == condition.type and old["status"] == condition.status:
            time = old["lastTransitionTime"]
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": generation,
        "lastTransitionTime": time,
    }
