"""Make tests/operator/golden/: what the operator makes of a few resources, a file for each kind.

A serving Deployment keeps the template it was made with while its TEMPLATE_VERSION is the
operator's and its spec has the hash that it had. So a file that is there already is not written
with another template under the same number, nor with another hash; --overwrite does it all the
same, which is right only for what no release has had.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lightllm_operator import cache, manifests
from lightllm_operator.facts import Pinned, spec_hash
from lightllm_operator.model_files import is_cached
from lightllm_operator.names import ANNOTATION_PINNED
from lightllm_operator.settings import Settings
from lightllm_operator.spec import DeploymentSpec, parse

FOLDER = Path(__file__).parents[1] / "tests" / "operator" / "golden"
_SETTINGS = Settings(serving_image="registry.test/lightllm-server:1")
# specs, each for something that the others have not
_CASES: dict[str, dict[str, Any]] = {
    "bare": {"model": {"uri": "file:///models/demo-model"}},
    "claim-on-cpu": {
        "model": {"uri": "pvc://models/llama", "servedName": "llama", "dtype": "bfloat16"},
        "gpu": {"count": 0},
        "apiKeySecretRef": {"name": "keys", "key": "api"},
        "rollout": {"type": "Recreate"},
        "drainTimeoutSeconds": 30,
        "startupTimeoutSeconds": 601,
        "service": {"type": "NodePort", "port": 8080, "annotations": {"team": "a"}},
        "extraArgs": ["--max-n=2"],
        "env": [{"name": "A", "value": "B"}],
        "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "8Gi"}},
    },
    "hub": {
        "model": {
            "uri": "hf://org/name",
            "revision": "main",
            "endpoint": "https://hub.test",
            "tokenSecretRef": {"name": "hub", "key": "token"},
            "maxLength": 4096,
        },
        "gpu": {"count": 4, "product": "NVIDIA-L4"},
        "kvCache": {"memoryPercent": 80},
        "image": "registry.test/other:2",
        "imagePullPolicy": "Always",
        "podTemplate": {
            "labels": {"team": "a"},
            "annotations": {"note": "b"},
            "nodeSelector": {"zone": "z1"},
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
            "runtimeClassName": "nvidia",
            "priorityClassName": "high",
            "imagePullSecrets": [{"name": "pull"}],
        },
    },
    "cached": {
        "model": {"uri": "s3://bucket/llama", "credentialsSecretRef": {"name": "s3"}},
        "cache": {"size": "100Gi", "storageClassName": "fast"},
        "gpu": {"count": 2, "resourceName": "example.com/gpu"},
    },
}


def rendered() -> dict[str, str]:
    """Text by file name; a document for each case."""
    files: dict[str, list[str]] = {}
    for case, fields in _CASES.items():
        body = {
            "metadata": {"name": case, "namespace": "default", "uid": "uid", "generation": 1},
            "spec": fields,
        }
        for name, manifest in _children(parse(body)):
            files.setdefault(name, []).append(yaml.dump(manifest, Dumper=_Dumper, sort_keys=False))
    return {name: "---\n".join(["# Made by `make golden`.\n", *t]) for name, t in files.items()}


def refusals(before: str, after: str) -> list[str]:
    """Why a file of Deployments must not be written over."""
    found = []
    olds, news = (_deployments(text) for text in (before, after))
    for name in olds.keys() & news.keys():
        old, new = olds[name], news[name]
        version, hashed = (
            [_pin(each)[field] for each in (old, new)]
            for field in ("template_version", "spec_hash")
        )
        if version[0] == version[1] and old["spec"]["template"] != new["spec"]["template"]:
            found.append(f"{name}: another template; raise manifests.TEMPLATE_VERSION")
        if hashed[0] != hashed[1]:
            found.append(f"{name}: another spec_hash; a new operator would replace all pods")
    return found


def write(*, overwrite: bool) -> list[str]:
    """Write the files, unless there are refusals."""
    files = rendered()
    old = sorted(FOLDER.glob("deployment-v*.yaml"))
    found = [
        refusal
        for path in old
        for refusal in refusals(path.read_text(encoding="utf-8"), files[_deployment_file()])
    ]
    if found and not overwrite:
        return found
    for path in FOLDER.glob("*.yaml"):
        path.unlink()
    for name, text in files.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return []


def _children(spec: DeploymentSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    pinned = Pinned(
        template_version=manifests.TEMPLATE_VERSION,
        image=spec.image or _SETTINGS.serving_image,
        spec_hash=spec_hash(spec),
        tensor_parallel_size=max(spec.gpu.count, 1),
        kv_dtype="int8" if spec.gpu.count else "auto",
        kv_reason="as asked",
        commit="c0ffee" if spec.model.uri.startswith("hf://") else "",
    )
    rollout = manifests.strategy(spec, any_ready=True, surge_blocked=False)
    yield _deployment_file(), manifests.deployment(spec, _SETTINGS, pinned, "{}", rollout)
    yield "check-job.yaml", manifests.check_job(spec, _SETTINGS)
    yield "service.yaml", manifests.service(spec)
    yield "disruption-budget.yaml", manifests.disruption_budget(spec)
    if is_cached(spec):
        yield "fetch-job.yaml", cache.fetch_job(spec, _SETTINGS)
    if (claim := cache.cache_claim(spec)) is not None:
        yield "claim.yaml", claim


def _deployment_file() -> str:
    return f"deployment-v{manifests.TEMPLATE_VERSION}.yaml"


class _Dumper(yaml.SafeDumper):
    """Writes out what is there twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _deployments(text: str) -> dict[str, dict[str, Any]]:
    bodies = [body for body in yaml.safe_load_all(text) if body]
    return {body["metadata"]["name"]: body for body in bodies}


def _pin(deployment: dict[str, Any]) -> dict[str, Any]:
    pin: dict[str, Any] = json.loads(deployment["metadata"]["annotations"][ANNOTATION_PINNED])
    return pin


if __name__ == "__main__":
    sys.exit("\n".join(write(overwrite="--overwrite" in sys.argv[1:])) or 0)
