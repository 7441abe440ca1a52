"""The operator's own settings, from the environment that the chart sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightllm_operator.errors import OperatorError

__all__ = ["Settings", "from_environment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """serving_image: for resources that name none. namespace: watched, None for all.

    cpu_for_gpu: pods that got GPUs run on the CPU all the same; for test clusters, whose GPUs are
    names only. scrape_seconds, resync_seconds: periods. health_port: of /healthz.
    """

    serving_image: str
    namespace: str | None = None
    own_namespace: str = "default"
    cpu_for_gpu: bool = False
    scrape_seconds: float = 5.0
    resync_seconds: float = 60.0
    health_port: int = 8080


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Raises OperatorError naming the variable that is missing or wrong."""
    image = environment.get("LIGHTLLM_SERVING_IMAGE")
    if not image:
        raise OperatorError("LIGHTLLM_SERVING_IMAGE: must name the serving image")
    return Settings(
        serving_image=image,
        namespace=environment.get("LIGHTLLM_NAMESPACE") or None,
        own_namespace=environment.get("POD_NAMESPACE", "default"),
        cpu_for_gpu=environment.get("LIGHTLLM_CPU_FOR_GPU", "") == "true",
        scrape_seconds=_positive(environment, "LIGHTLLM_SCRAPE_SECONDS", 5.0),
        resync_seconds=_positive(environment, "LIGHTLLM_RESYNC_SECONDS", 60.0),
        health_port=int(_positive(environment, "LIGHTLLM_HEALTH_PORT", 8080)),
    )


def _positive(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 86400:
        raise OperatorError(f"{name}: must be a number above 0, got {text!r}")
    return value
