"""What the watches have shown of our objects, set right by LISTs. Pure; times are the caller's.

Versions are compared as numbers: those of one kind only grow (Kubernetes promises so since 1.35).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightllm_operator.names import (
    API_VERSION,
    FIELD_MANAGER,
    INSTANCE,
    KIND,
    MANAGED_BY,
    SERVER,
    child_labels,
)
from lightllm_operator.reconcile import Key

__all__ = ["WATCHED", "WatchCache", "Watched"]

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Watched:
    """A kind whose changes wake a reconcile; labels: of the objects that concern us."""

    api_version: str
    kind: str
    plural: str
    labels: Mapping[str, str] | None = None


_OURS = {MANAGED_BY: FIELD_MANAGER}
WATCHED = (
    Watched(API_VERSION, KIND, "lightllmdeployments"),
    Watched("apps/v1", "Deployment", "deployments", _OURS),
    Watched("v1", "Pod", "pods", _OURS),
    Watched("batch/v1", "Job", "jobs", _OURS),
    Watched("v1", "Service", "services", _OURS),
    Watched("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", _OURS),
)
_API_VERSIONS = {each.kind: each.api_version for each in WATCHED}
# of these nobody reads the spec, the largest part
_WITHOUT_SPEC = ("Pod", "Job")


@dataclass(slots=True)
class _Known:
    """version: the newest of watch and LIST; seen: the watch's; owner: the resource."""

    owner: Key
    version: int
    seen: int


class WatchCache:
    """Implements `scaler.Source`. Objects are named by `Key`, of whatever kind. complete: the
    watches have shown everything once."""

    def __init__(self) -> None:
        self._known: dict[str, dict[Key, _Known]] = {each.kind: {} for each in WATCHED}
        # (version, since when): shown by a LIST and not by the watch
        self._unseen: dict[str, dict[Key, tuple[int, float]]] = {each.kind: {} for each in WATCHED}
        # those that the watch has shown as deleted since the last LIST, with the deletion's version
        self._deleted: dict[str, dict[Key, int]] = {each.kind: {} for each in WATCHED}
        # the newest version that the watch has shown of any object
        self._newest = {each.kind: 0 for each in WATCHED}
        self._objects: dict[str, dict[Key, dict[str, Any]]] = {each.kind: {} for each in WATCHED}
        # resource → names of its pods, those of Jobs too
        self._pods: dict[Key, set[Key]] = {}
        self.complete = asyncio.Event()

    def resources(self) -> Mapping[Key, Object]:
        return self._objects[KIND]

    def get(self, kind: str, name: Key) -> dict[str, Any] | None:
        """One object, without its managed fields; Pods and Jobs without their spec."""
        return self._objects[kind].get(name)

    def pods_with(self, owner: Key, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """Pods of a resource that have these labels."""
        pods = self._objects["Pod"]
        found = (pods[name] for name in self._pods.get(owner, ()))
        return [pod for pod in found if labels.items() <= pod["metadata"]["labels"].items()]

    def pods(self, key: Key) -> list[Object]:
        """Those that serve."""
        return [*self.pods_with(key, child_labels(key.name, SERVER))]

    def deployment(self, key: Key) -> Object | None:
        """The one that serves."""
        deployment = self.get("Deployment", key)
        if deployment is None or not _is_server(key, deployment["metadata"]):
            return None
        return deployment

    def show(self, kind: str, body: Object, *, deleted: bool = False) -> Key:
        """Note what a watch shows; the resource that it concerns."""
        name, owner, version = _name(body), _owner(kind, body), _version(body["metadata"])
        self._newest[kind] = max(self._newest[kind], version)
        unseen = self._unseen[kind].get(name)
        if deleted or (unseen is not None and unseen[0] <= version):
            self._unseen[kind].pop(name, None)
        if deleted:
            self._deleted[kind][name] = max(version, self._deleted[kind].get(name, -1))
        known = self._known[kind].get(name)
        if known is not None:
            known.seen = max(known.seen, version)
        if known is not None and known.version > version:
            # a LIST was ahead of the watch
            return owner
        if deleted:
            self._drop(kind, name)
        else:
            self._known[kind][name] = _Known(owner, version, version)
            self._store(kind, body)
        return owner

    def note(self, kind: str, body: Object) -> None:
        """Hold what the API server answered to a write, before the watch shows it."""
        name, version = _name(body), _version(body["metadata"])
        known = self._known[kind].get(name)
        if known is None and version <= self._newest[kind]:
            # the watch has been there: the object is gone again, or is about to be shown
            return
        if known is None or known.version < version:
            owner, seen = _owner(kind, body), -1 if known is None else known.seen
            self._known[kind][name] = _Known(owner, version, seen)
            self._store(kind, body)

    def compare(self, kind: str, listed: Iterable[Object], version: str, now: float) -> bool:
        """listed: all objects of the kind, metadata is enough; version: the LIST's. Note what the
        watch has not shown; whether the cache differs, so that `replace` is wanted."""
        known, before = self._known[kind], self._unseen[kind]
        unseen: dict[Key, tuple[int, float]] = {}
        names: set[Key] = set()
        differs = False
        for name, body in self._still_there(kind, listed, int(version)):
            newest = _version(body["metadata"])
            names.add(name)
            one = known.get(name)
            if one is None or one.seen < newest:
                unseen[name] = (newest, before[name][1] if name in before else now)
            differs = differs or one is None or one.version < newest
        self._unseen[kind] = unseen
        return differs or bool(self._gone(kind, names, int(version)))

    def replace(self, kind: str, bodies: Iterable[Object], version: str) -> set[Key]:
        """Hold what a LIST shows from now on; the resources whose objects were not so."""
        changed: set[Key] = set()
        names: set[Key] = set()
        known = self._known[kind]
        for name, body in self._still_there(kind, bodies, int(version)):
            newest = _version(body["metadata"])
            names.add(name)
            one = known.get(name)
            if one is None or one.version < newest:
                owner = _owner(kind, body)
                known[name] = _Known(owner, newest, one.seen if one is not None else -1)
                self._store(kind, body)
                changed.add(owner)
        for name in self._gone(kind, names, int(version)):
            changed.add(known[name].owner)
            self._drop(kind, name)
        return changed

    def unseen_seconds(self, now: float) -> float:
        """Age of the oldest change that the watch has not shown; a deletion is none, since a watch
        that began anew never shows it."""
        times = [since for kind in self._unseen.values() for _, since in kind.values()]
        return now - min(times) if times else 0.0

    def unseen_example(self) -> str:
        """One of those changes, in words."""
        entries = [
            (since, kind, name)
            for kind, objects in self._unseen.items()
            for name, (_, since) in objects.items()
        ]
        if not entries:
            return ""
        _, kind, name = min(entries)
        return f"{kind} {name.namespace}/{name.name}"

    def _still_there(
        self, kind: str, listed: Iterable[Object], version: int
    ) -> list[tuple[Key, Object]]:
        """Without those that the watch has shown as deleted after the LIST was made, before its
        answer came. Forgets the deletions that the LIST has seen: LISTs must be consistent reads,
        each newer than the one before.
        """
        deleted = self._deleted[kind]
        named = [(_name(body), body) for body in listed]
        there = [(n, body) for n, body in named if _version(body["metadata"]) > deleted.get(n, -1)]
        self._deleted[kind] = {n: at for n, at in deleted.items() if at > version}
        return there

    def _gone(self, kind: str, listed: set[Key], version: int) -> list[Key]:
        """Known objects that a LIST at `version` lacks; later ones it could not have."""
        known = self._known[kind]
        return [n for n, one in known.items() if n not in listed and one.version <= version]

    def _store(self, kind: str, body: Object) -> None:
        owner, name, metadata = _owner(kind, body), _name(body), body["metadata"]
        # large, and nobody's business here
        slim = {**body, "metadata": {k: v for k, v in metadata.items() if k != "managedFields"}}
        if kind in _WITHOUT_SPEC:
            slim.pop("spec", None)
        # items of a LIST lack them
        whole = {**slim, "apiVersion": _API_VERSIONS[kind], "kind": kind}
        self._objects[kind][name] = _shared(whole)
        if kind == "Pod":
            self._pods.setdefault(owner, set()).add(name)

    def _drop(self, kind: str, name: Key) -> None:
        known = self._known[kind].pop(name, None)
        if known is None:
            return
        self._objects[kind].pop(name, None)
        if kind == "Pod":
            pods = self._pods.get(known.owner, set())
            pods.discard(name)
            if not pods:
                self._pods.pop(known.owner, None)


def _shared(value: Any) -> Any:
    """A copy whose strings are shared with all others: objects of a kind are much alike, and their
    field names alone are most of what a thousand of them take."""
    if isinstance(value, dict):
        return {sys.intern(key): _shared(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shared(each) for each in value]
    return sys.intern(value) if isinstance(value, str) else value


def _name(body: Object) -> Key:
    return Key(body["metadata"]["namespace"], body["metadata"]["name"])


def _owner(kind: str, body: Object) -> Key:
    if kind == KIND:
        return _name(body)
    metadata = body["metadata"]
    return Key(metadata["namespace"], metadata.get("labels", {}).get(INSTANCE, ""))


def _is_server(owner: Key, metadata: Object) -> bool:
    labels: Mapping[str, str] = metadata.get("labels", {})
    return child_labels(owner.name, SERVER).items() <= labels.items()


def _version(metadata: Object) -> int:
    return int(metadata["resourceVersion"])
