"""The operator's own settings, from the environment that the chart sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from lightllm_operator.errors import OperatorError
from lightllm_operator.logs import LogFormat

__all__ = ["Settings", "from_environment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """serving_image: for resources that name none. namespace: watched, None for all.

    cpu_for_gpu: pods that got GPUs run on the CPU all the same; for test clusters, whose GPUs are
    names only. scrape_seconds, resync_seconds: periods. watch_stale_seconds: how long a change may
    be unseen by the watch, stuck_seconds: how long one reconcile may take, before `/healthz` fails.
    lease_seconds: after which another replica takes over from one that is gone. stop_seconds: for
    the reconciles that run at SIGTERM.
    """

    serving_image: str
    namespace: str | None = None
    own_namespace: str = "default"
    pod_name: str = "lightllm-operator"
    cpu_for_gpu: bool = False
    scrape_seconds: float = 5.0
    resync_seconds: float = 60.0
    watch_stale_seconds: float = 90.0
    stuck_seconds: float = 600.0
    stop_seconds: float = 5.0
    lease_name: str = "lightllm-operator"
    lease_seconds: float = 12.0
    health_port: int = 8080
    log_format: LogFormat = "text"


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Raises OperatorError naming the variable that is missing or wrong."""
    image = environment.get("LIGHTLLM_SERVING_IMAGE")
    if not image:
        raise OperatorError("LIGHTLLM_SERVING_IMAGE: must name the serving image")
    default = Settings(serving_image=image)

    def seconds(name: str, otherwise: float) -> float:
        return _number(environment, name, otherwise, lowest=0.1, highest=86400)

    return Settings(
        serving_image=image,
        namespace=environment.get("LIGHTLLM_NAMESPACE") or None,
        own_namespace=environment.get("POD_NAMESPACE") or default.own_namespace,
        pod_name=environment.get("POD_NAME") or default.pod_name,
        cpu_for_gpu=environment.get("LIGHTLLM_CPU_FOR_GPU", "") == "true",
        scrape_seconds=seconds("LIGHTLLM_SCRAPE_SECONDS", default.scrape_seconds),
        resync_seconds=seconds("LIGHTLLM_RESYNC_SECONDS", default.resync_seconds),
        watch_stale_seconds=seconds("LIGHTLLM_WATCH_STALE_SECONDS", default.watch_stale_seconds),
        stuck_seconds=seconds("LIGHTLLM_STUCK_SECONDS", default.stuck_seconds),
        lease_name=environment.get("LIGHTLLM_LEASE_NAME") or default.lease_name,
        lease_seconds=seconds("LIGHTLLM_LEASE_SECONDS", default.lease_seconds),
        health_port=int(
            _number(environment, "LIGHTLLM_HEALTH_PORT", default.health_port, 1, 65535)
        ),
        log_format=_log_format(environment.get("LIGHTLLM_LOG_FORMAT") or default.log_format),
    )


def _number(
    environment: Mapping[str, str], name: str, otherwise: float, lowest: float, highest: float
) -> float:
    text = environment.get(name)
    if not text:
        return otherwise
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not lowest <= value <= highest:
        raise OperatorError(f"{name}: {text!r} is no number from {lowest:g} to {highest:g}")
    return value


def _log_format(text: str) -> LogFormat:
    for known in get_args(LogFormat):
        if text == known:
            found: LogFormat = known
            return found
    raise OperatorError(f"LIGHTLLM_LOG_FORMAT: {text!r} is neither text nor json")
