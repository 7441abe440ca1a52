"""One resource, made as its spec says: read, decide by the pure modules, apply, tell.

The only writer of children and status. Level-based: called for every change and from time to time,
it does the same thing, which is nothing where nothing is to be done.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from lightllm_operator import manifests
from lightllm_operator.autoscale import Decision, PodSample
from lightllm_operator.child_parts import serving_image
from lightllm_operator.cluster.client import Objects, apply_child, path_of
from lightllm_operator.cluster.progress import ProgressReader
from lightllm_operator.containment import contains, stamped
from lightllm_operator.errors import ApiError, RefusedError, SpecError
from lightllm_operator.facts import ModelFacts, NodeGpu, Pinned, node_gpu, spec_hash
from lightllm_operator.model_reader import ModelReader, ModelReading, is_owned
from lightllm_operator.names import (
    ANNOTATION_REPORT,
    API_VERSION,
    KIND,
    POD_DELETION_COST,
    SCALE_MANAGER,
    selector,
)
from lightllm_operator.pins import pin_of, unedited_pin, update_of
from lightllm_operator.pods import (
    find_missing_volumes,
    has_ended,
    is_ready,
    is_terminating,
    unschedulable_since,
)
from lightllm_operator.settings import Settings
from lightllm_operator.sizing import KvChoice, kv_choice, tensor_parallel_size
from lightllm_operator.spec import DeploymentSpec, check, read
from lightllm_operator.status import Observation
from lightllm_operator.status_writer import StatusWriter
from lightllm_operator.timestamps import unix_seconds

__all__ = ["Key", "Reconciler", "ScaleView"]

Object = dict[str, Any]

_SURGE_PATIENCE_S = 10
_RECHECK_S = 60
_SOON_S = 5.0
# the highest pod-deletion-cost
_UNKNOWN_LOAD = 2**31 - 1


class Key(NamedTuple):
    """A resource."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ScaleView(Protocol):
    """What the scaler knows of a resource."""

    def decision(self, key: Key) -> Decision | None: ...
    def load(self, key: Key) -> Mapping[str, PodSample]: ...
    def kv_choice(self, key: Key) -> KvChoice | None: ...
    def last_scale_time(self, key: Key) -> str | None: ...
    def forget(self, key: Key) -> None: ...


class Reconciler:
    """Brings resources and their children in line."""

    def __init__(
        self, cluster: Objects, settings: Settings, scaler: ScaleView, downloads: ProgressReader
    ) -> None:
        self._cluster = cluster
        self._status = StatusWriter(cluster)
        self._models = ModelReader(cluster, settings, downloads)
        self._settings = settings
        self._scaler = scaler

    async def reconcile(self, key: Key) -> float | None:
        """Seconds after which to come again whatever happens, None if only a change needs it."""
        owner = await self._cluster.get(API_VERSION, KIND, *key)
        if owner is None or "deletionTimestamp" in owner["metadata"]:
            self._scaler.forget(key)
            return None
        seen, delay = await self._bring_in_line(read(owner), _failing_seconds(owner))
        await self._status.tell(owner, seen)
        return delay

    async def _bring_in_line(
        self, spec: DeploymentSpec, failing_s: float
    ) -> tuple[Observation, float | None]:
        """failing_s: for how long the model could not be read."""
        cluster, key = self._cluster, Key(spec.namespace, spec.name)
        deployment = await cluster.get("apps/v1", "Deployment", *key)
        if deployment is not None and not is_owned(deployment, spec.uid):
            problem = f"deployment {spec.name} exists and is not this resource's; rename one"
            refused = RefusedError("NameTaken", problem)
            return Observation(spec=spec, desired=0, refused=refused), _RECHECK_S
        pods: list[Object] = []
        if deployment is not None:
            found = await cluster.list(
                "v1", "Pod", spec.namespace, selector(spec.name), cached=True
            )
            pods = [pod for pod in found if not has_ended(pod)]
        decision = self._scaler.decision(key)
        desired = _desired(spec, deployment, decision)
        pinned, update = pin_of(deployment, spec), ""
        kept = unedited_pin(pinned, spec)
        # what the pods were made with is known already: another default image changes none of it
        checked = spec if kept is None else replace(spec, image=kept.image)
        report = _annotation(deployment, ANNOTATION_REPORT)
        reading, refused_error = await self._read_model(checked, report, failing_s)
        model, serving = reading.model, deployment
        if refused_error is None and model is not None:
            try:
                serving, pinned, update = await self._apply_deployment(
                    spec, kept, deployment, pods, model, reading.report, desired
                )
            except RefusedError as error:
                refused_error = error
        if refused_error is None and pinned is not None:
            try:
                await self._apply_others(spec, desired)
            except RefusedError as error:
                refused_error = error
        if serving is not None and pinned is not None:
            try:
                serving = await self._scale(spec, serving, pods, desired)
            except RefusedError as error:
                refused_error = refused_error or error
        seen = Observation(
            spec=spec,
            desired=desired,
            model=model,
            check_problem=reading.problem,
            download=reading.download or await self._models.download(pods),
            refused=refused_error,
            pinned=pinned,
            deployment=serving,
            pods=pods,
            missing_volumes=find_missing_volumes(pods, spec.secrets, time.time()),
            decision=decision,
            kv=self._scaler.kv_choice(key),
            last_scale_time=self._scaler.last_scale_time(key),
            update=update,
        )
        settled = model is not None and sum(map(is_ready, pods)) == desired == len(pods)
        if isinstance(refused_error, SpecError):
            # only an edit helps
            return seen, None
        if refused_error is not None:
            return seen, min(_RECHECK_S, reading.again_s or _RECHECK_S)
        return seen, None if settled else _SOON_S

    async def _read_model(
        self, spec: DeploymentSpec, kept: str, failing_s: float
    ) -> tuple[ModelReading, RefusedError | SpecError | None]:
        """What is known of the model, and why its pods must not be made."""
        try:
            check(spec)
            reading = await self._models.read(spec, kept, failing_s)
        except SpecError as error:
            # nothing is read by a wrong spec
            return self._models.known(spec, kept), error
        except RefusedError as error:
            return ModelReading(), error
        if reading.model is not None and reading.model.errors:
            said = "; ".join((*reading.model.errors, *_where_to_look(spec, reading.model)))
            return reading, RefusedError("UnsupportedModel", said)
        return reading, None

    # ------------------------------------------------------------ children

    async def _apply_deployment(
        self,
        spec: DeploymentSpec,
        kept: Pinned | None,
        deployment: Object | None,
        pods: list[Object],
        model: ModelFacts,
        report: str,
        desired: int,
    ) -> tuple[Object, Pinned, str]:
        """Apply the serving Deployment where it differs; the Deployment, what it is made with, and
        what a newer operator would change. Raises RefusedError."""
        image = serving_image(spec, self._settings)
        size = tensor_parallel_size(spec, model)
        if kept is None:
            kv = kv_choice(spec, model, await self._nodes(spec))
            kept = Pinned(
                template_version=manifests.TEMPLATE_VERSION,
                image=image,
                spec_hash=spec_hash(spec),
                tensor_parallel_size=size,
                kv_dtype=kv.dtype,
                kv_reason=kv.reason,
                commit=model.commit,
                upgrade_request=spec.upgrade_request,
            )
        rollout = manifests.strategy(
            spec,
            any_ready=any(map(is_ready, pods)) or deployment is None,
            surge_blocked=_surge_blocked(deployment, pods),
        )
        wanted = manifests.deployment(spec, self._settings, kept, report, rollout)
        if kept.is_adopted and contains(_template(deployment), _template(wanted)):
            kept = replace(kept, template_version=manifests.TEMPLATE_VERSION)
            wanted = manifests.deployment(spec, self._settings, kept, report, rollout)
        update = update_of(kept, image)
        if update and deployment is not None:
            # all but what the pods run with is brought in line: a rollout may be under way
            wanted["spec"]["template"] = _template(deployment)
        wanted = stamped(wanted)
        if deployment is None or not contains(deployment, wanted):
            if deployment is None:
                # else a new one would begin with one pod
                wanted["spec"]["replicas"] = desired
            elif not _count_is_set(deployment):
                # left out, it would fall back to one
                wanted["spec"]["replicas"] = deployment["spec"].get("replicas", 1)
            deployment = await apply_child(self._cluster, wanted)
        return deployment, kept, update

    async def _apply_others(self, spec: DeploymentSpec, desired: int) -> None:
        """Raises RefusedError, also where another's Service has the name."""
        cluster = self._cluster
        service = stamped(manifests.service(spec))
        live = await cluster.get("v1", "Service", spec.namespace, spec.name)
        if live is not None and not is_owned(live, spec.uid):
            problem = f"service {spec.name} exists and is not this resource's; rename one"
            raise RefusedError("NameTaken", problem)
        if live is None or not contains(live, service):
            await apply_child(cluster, service)
        budget = stamped(manifests.disruption_budget(spec))
        live = await cluster.get("policy/v1", "PodDisruptionBudget", spec.namespace, spec.name)
        if live is not None and not is_owned(live, spec.uid):
            # the user's own, who may well know better
            return
        if desired < 2 and live is not None:
            await cluster.delete("policy/v1", "PodDisruptionBudget", spec.namespace, spec.name)
        elif desired >= 2 and (live is None or not contains(live, budget)):
            await apply_child(cluster, budget)

    async def _scale(
        self, spec: DeploymentSpec, deployment: Object, pods: list[Object], desired: int
    ) -> Object:
        """Set the count; the least loaded pods go first. The Deployment as it is then. Raises
        RefusedError."""
        if deployment["spec"].get("replicas") == desired:
            return deployment
        if deployment["spec"].get("replicas", 0) > desired:
            await self._set_deletion_costs(spec, pods)
        wanted = manifests.scale(spec, desired)
        return await apply_child(self._cluster, wanted, manager=SCALE_MANAGER)

    async def _set_deletion_costs(self, spec: DeploymentSpec, pods: list[Object]) -> None:
        load = self._scaler.load(Key(spec.namespace, spec.name))
        for pod in pods:
            sample = load.get(pod["metadata"]["name"])
            if is_terminating(pod) or (sample is None and not is_ready(pod)):
                # on its way out, or taken before those that are Ready
                continue
            # who does not answer may well be the busiest
            cost = str(_UNKNOWN_LOAD if sample is None else sample.waiting + sample.running)
            if pod["metadata"].get("annotations", {}).get(POD_DELETION_COST) != cost:
                path = path_of("v1", "Pod", spec.namespace, pod["metadata"]["name"])
                patch = {"metadata": {"annotations": {POD_DELETION_COST: cost}}}
                try:
                    await self._cluster.merge(path, patch)
                except ApiError as error:
                    # the pod is gone already
                    if error.status != 404:
                        raise

    async def _nodes(self, spec: DeploymentSpec) -> list[NodeGpu] | None:
        """The nodes that the pods' selector matches; None without access to nodes."""
        if not spec.gpu.count:
            return None
        labels = dict(spec.pod_template.node_selector)
        if spec.gpu.product is not None:
            labels["nvidia.com/gpu.product"] = spec.gpu.product
        try:
            nodes = await self._cluster.list("v1", "Node", None, labels, cached=True)
        except ApiError as error:
            if error.status == 403:
                return None
            raise
        # nodes without GPUs of this kind never get a pod
        resource = spec.gpu.resource_name
        return [
            node_gpu(node)
            for node in nodes
            if resource in node.get("status", {}).get("capacity", {})
            or "nvidia.com/gpu.product" in node["metadata"].get("labels", {})
        ]


def _count_is_set(deployment: Object) -> bool:
    """Whether `_scale` has set the count, which then outlasts other applies without it."""
    return any(
        entry.get("manager") == SCALE_MANAGER
        and "f:replicas" in entry["fieldsV1"].get("f:spec", {})
        for entry in deployment["metadata"].get("managedFields", ())
    )


def _desired(spec: DeploymentSpec, deployment: Object | None, decision: Decision | None) -> int:
    if spec.suspend:
        return 0
    if spec.autoscaling is None:
        return 1 if spec.replicas is None else spec.replicas
    low, high = spec.autoscaling.min_replicas, spec.autoscaling.max_replicas
    now = low if deployment is None else deployment["spec"].get("replicas", low)
    wanted = now if decision is None else decision.replicas
    return min(max(wanted, low), high)


def _failing_seconds(owner: Object) -> float:
    """For how long ModelAvailable has been False for this spec; 0 if it is not."""
    for told in owner.get("status", {}).get("conditions", ()):
        current = told["observedGeneration"] == owner["metadata"]["generation"]
        if told["type"] == "ModelAvailable" and told["status"] == "False" and current:
            return time.time() - unix_seconds(told["lastTransitionTime"])
    return 0.0


def _where_to_look(spec: DeploymentSpec, model: ModelFacts) -> list[str]:
    """The next step where a path has no model in it."""
    if not any("no such" in error for error in model.errors):
        return []
    places = {"file": "a file:// path is one inside the serving image", "pvc": "or fill the claim"}
    place = places.get(spec.model.uri.partition(":")[0])
    return ["correct spec.model.uri" + (f" ({place})" if place else "")]


def _annotation(child: Object | None, name: str) -> str:
    annotations = (child or {}).get("metadata", {}).get("annotations", {})
    value: str = annotations.get(name, "")
    return value


def _template(deployment: Object | None) -> Object | None:
    return None if deployment is None else deployment["spec"]["template"]


def _surge_blocked(deployment: Object | None, pods: list[Object]) -> bool:
    """A pod that came beside the wanted ones found no node; stays so until the rollout is over."""
    if deployment is None:
        return False
    counts = deployment.get("status", {})
    wanted = deployment["spec"].get("replicas", 1)
    rolling = deployment["spec"].get("strategy", {}).get("rollingUpdate", {})
    unfinished = counts.get("updatedReplicas", 0) < wanted or counts.get("replicas", 0) > wanted
    if rolling.get("maxSurge") in (0, "0%") and rolling.get("maxUnavailable") == 1 and unfinished:
        return True
    if counts.get("replicas", 0) <= wanted:
        return False
    since = [at for pod in pods if not is_terminating(pod) and (at := unschedulable_since(pod))]
    return any(time.time() - at >= _SURGE_PATIENCE_S for at in since)
