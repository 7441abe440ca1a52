"""What the operator knows beside the spec: the model, the nodes, what the Deployment was made with.

Plain values, read from the cluster by `reconcile`; the pure functions of `sizing`, `manifests` and
`status` take them as arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from lightllm_operator.spec import DeploymentSpec

__all__ = [
    "ADOPTED",
    "DownloadProgress",
    "ModelFacts",
    "NodeGpu",
    "Pinned",
    "node_gpu",
    "spec_hash",
]

Object = Mapping[str, Any]

_COMPUTE = "nvidia.com/gpu.compute"
# fields of the spec that reach no pod: their edits must not restart any
_POD_FREE = (
    *("name", "namespace", "uid", "generation", "upgrade_request"),
    *("replicas", "autoscaling", "suspend", "rollout", "service"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The report of `lightllm-server check`, for one model and image.

    valid_tp: sizes that the model allows. weight_bytes: of all files. commit: of the hub, "" for
    other sources. errors: why it cannot be served; the other values then may be empty.
    """

    family: str = ""
    heads: int = 0
    kv_heads: int = 0
    valid_tp: tuple[int, ...] = ()
    kv_bytes_per_token: int = 0
    int8_supported: bool = False
    int8_reason: str = ""
    weight_bytes: int = 0
    commit: str = ""
    errors: tuple[str, ...] = ()

    @classmethod
    def from_report(cls, text: str) -> ModelFacts:
        """Raises ValueError where `text` is no report."""
        report = json.loads(text)
        if not isinstance(report, dict) or "errors" not in report:
            raise ValueError("no report of lightllm-server check")
        if report["errors"]:
            return cls(errors=tuple(report["errors"]))
        return cls(
            family=report["family"],
            heads=report["heads"],
            kv_heads=report["kv_heads"],
            valid_tp=tuple(report["valid_tp"]),
            kv_bytes_per_token=report["kv_bytes_per_token"]["model"],
            int8_supported=report["int8_kv"]["supported"],
            int8_reason=report["int8_kv"]["reason"],
            weight_bytes=report["weight_bytes"],
            commit=report.get("commit", ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadProgress:
    """Bytes, as a fetch container tells. pod: its pod, or its Job before that is there; total 0:
    not known yet."""

    pod: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGpu:
    """A node's GPUs by GPU feature discovery's labels; compute: (major, minor), None without."""

    node: str
    product: str | None
    compute: tuple[int, int] | None


def node_gpu(node: Object) -> NodeGpu:
    """Read the labels of a Node object."""
    labels = node["metadata"].get("labels", {})
    major, minor = labels.get(f"{_COMPUTE}.major"), labels.get(f"{_COMPUTE}.minor", "0")
    compute = (int(major), int(minor)) if (major or "").isdigit() and minor.isdigit() else None
    product = labels.get("nvidia.com/gpu.product")
    return NodeGpu(node=node["metadata"]["name"], product=product, compute=compute)


# a template version: of pods of which nobody knows what they were made with
ADOPTED = 0
# by the annotation of a field of `Pinned`
_PIN_TYPES = {"int": (int,), "str": (str,), "str | None": (str, type(None))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """What the serving Deployment was made with; a newer operator keeps it until the spec changes.

    spec_hash: of the fields of the spec that reach the pods. commit: of the hub, "" for others.
    """

    template_version: int
    image: str
    spec_hash: str
    tensor_parallel_size: int
    kv_dtype: str
    kv_reason: str
    upgrade_request: str | None = None
    commit: str = ""

    def to_json(self) -> str:
        return json.dumps(
            {name: getattr(self, name) for name in self.__slots__}, separators=(",", ":")
        )

    @property
    def is_adopted(self) -> bool:
        """What the Deployment was made with was lost; this is what its pods showed."""
        return self.template_version == ADOPTED

    @classmethod
    def from_json(cls, text: str) -> Pinned:
        """Fields that only another operator knows are passed over. Raises ValueError where `text`
        is no pin."""
        try:
            said = json.loads(text)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        said = said if isinstance(said, dict) else {}
        values = {each.name: said.get(each.name, each.default) for each in fields(cls)}
        types = {each.name: _PIN_TYPES[str(each.type)] for each in fields(cls)}
        wrong = [name for name, value in values.items() if type(value) not in types[name]]
        if wrong:
            raise ValueError(f"missing or of another type: {', '.join(wrong)}")
        return cls(**values)


def spec_hash(spec: DeploymentSpec) -> str:
    """Of what the spec says for the pods.

    A field that has its default counts as unsaid: the schema that comes with a newer operator may
    add fields, and the API server completes every resource by their defaults.
    """
    said = {name: value for name, value in _said(spec).items() if name not in _POD_FREE}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _said(value: Any) -> Any:
    if not is_dataclass(value):
        return value
    said = {}
    for each in fields(value):
        got = getattr(value, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if got != default:
            said[each.name] = _said(got)
    return said
