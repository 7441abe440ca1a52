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
    names only. scrape_seconds, resync_seconds: periods.
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
    )
