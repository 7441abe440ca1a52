"""The CRD: installed on an API server, and its schema as a list of nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rest import Rest

__all__ = ["CRD", "Node", "install", "nodes", "resources", "version"]

CRD = Path(__file__).parents[2] / "crds" / "lightllmdeployments.serving.lightllm.io.yaml"


@dataclass(frozen=True, slots=True)
class Node:
    """path: `spec.env[].name`, `spec.resources.limits{}`; "" for the object itself."""

    path: str
    schema: Mapping[str, Any]

    @property
    def keys(self) -> tuple[str, ...]:
        """The steps from the object: names, `[]` for an item, `{}` for a value of a map."""
        parts = self.path.replace("[]", ".[]").replace("{}", ".{}")
        return tuple(parts.split(".")) if parts else ()

    @property
    def type(self) -> str:
        if self.schema.get("x-kubernetes-int-or-string"):
            return "int-or-string"
        return str(self.schema["type"])

    @property
    def rules(self) -> list[Mapping[str, str]]:
        return list(self.schema.get("x-kubernetes-validations", ()))


def version() -> dict[str, Any]:
    """The one version of the CRD."""
    [only] = yaml.safe_load(CRD.read_text(encoding="utf-8"))["spec"]["versions"]
    return dict(only)


def nodes() -> list[Node]:
    """Every node of the schema, parents first; apiVersion, kind and metadata left out."""
    root = version()["schema"]["openAPIV3Schema"]
    for name in ("apiVersion", "kind", "metadata"):
        del root["properties"][name]
    return list(_walk("", root))


def _walk(path: str, schema: Mapping[str, Any]) -> Iterator[Node]:
    yield Node(path, schema)
    for name, child in schema.get("properties", {}).items():
        yield from _walk(f"{path}.{name}" if path else name, child)
    if "items" in schema:
        yield from _walk(f"{path}[]", schema["items"])
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from _walk(f"{path}{{}}", schema["additionalProperties"])


def resources(namespace: str) -> str:
    """The path of the resources of a namespace."""
    return f"/apis/serving.lightllm.io/v1alpha1/namespaces/{namespace}/lightllmdeployments"


def install(rest: Rest) -> None:
    """Apply the CRD and wait until it is served."""
    document = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{document['metadata']['name']}"
    answer = rest.apply(path, document)
    assert answer.status in (200, 201), answer.message
    deadline = time.monotonic() + 30
    while rest("GET", resources("default")).status != 200:
        assert time.monotonic() < deadline, "the CRD is not served"
        time.sleep(0.2)
