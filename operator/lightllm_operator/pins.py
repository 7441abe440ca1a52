"""What a serving Deployment was made with: read, compared, adopted where lost. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightllm_operator import manifests
from lightllm_operator.facts import ADOPTED, Pinned, spec_hash
from lightllm_operator.names import ANNOTATION_PINNED
from lightllm_operator.spec import DeploymentSpec

__all__ = ["pin_of", "unedited_pin", "update_of"]

Object = Mapping[str, Any]


def pin_of(deployment: Object | None, spec: DeploymentSpec) -> Pinned | None:
    """None without a Deployment. An annotation that cannot be read is no reason to replace pods:
    what they run with is adopted as what the spec asked for."""
    if deployment is None:
        return None
    text = deployment["metadata"].get("annotations", {}).get(ANNOTATION_PINNED, "")
    try:
        return Pinned.from_json(text)
    except ValueError:
        return _adopted(deployment["spec"]["template"]["spec"], spec)


def unedited_pin(pinned: Pinned | None, spec: DeploymentSpec) -> Pinned | None:
    """What the pods were made with, while the user asks for nothing else."""
    if pinned is None or pinned.spec_hash != spec_hash(spec):
        return None
    # who takes the annotation away asks for nothing
    return pinned if spec.upgrade_request in (None, pinned.upgrade_request) else None


def update_of(pinned: Pinned, image: str) -> str:
    """What this operator would change of the pods, "" for nothing. image: that it would serve."""
    if pinned.is_adopted:
        return (
            f"annotation {ANNOTATION_PINNED} of the deployment was lost, so its pods stay as they "
            "are, whether of this spec or not"
        )
    if pinned.template_version != manifests.TEMPLATE_VERSION:
        return "this operator would make the pods anew, with its own template"
    return f"this operator would serve with image {image}" if pinned.image != image else ""


def _adopted(pod: Object, spec: DeploymentSpec) -> Pinned:
    servers = [each for each in pod["containers"] if each["name"] == "server"]
    server = (servers or pod["containers"])[0]
    options = _options(server.get("args", ()))
    fetches = (each for each in pod.get("initContainers", ()) if each["name"] == "fetch")
    size = options.get("tp", "")
    return Pinned(
        template_version=ADOPTED,
        image=server["image"],
        spec_hash=spec_hash(spec),
        tensor_parallel_size=int(size) if size.isdecimal() else 1,
        kv_dtype=options.get("kv-dtype", "auto"),
        kv_reason="the pods run with it",
        upgrade_request=spec.upgrade_request,
        commit=next((_options(each.get("args", ())).get("revision", "") for each in fetches), ""),
    )


def _options(arguments: Iterable[str]) -> dict[str, str]:
    """Value by name of `--name=value`."""
    parts = (argument.removeprefix("--").partition("=") for argument in arguments)
    return {name: value for name, _, value in parts}
