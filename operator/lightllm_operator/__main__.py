"""`python -m lightllm_operator`: run until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import kopf

from lightllm_operator.errors import OperatorError
from lightllm_operator.handlers import register
from lightllm_operator.settings import from_environment


def main() -> int:
    """Exit code 78 where a setting is missing or wrong."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # they tell of every event of every object, and of every probe
    for name in ("kopf", "aiohttp.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        settings = from_environment(os.environ)
    except OperatorError as error:
        print(f"lightllm-operator: error: {error}", file=sys.stderr)  # noqa: T201
        return 78
    registry = kopf.OperatorRegistry()
    register(registry, settings)
    asyncio.run(
        kopf.operator(
            registry=registry,
            clusterwide=settings.namespace is None,
            namespaces=[settings.namespace] if settings.namespace else [],
            standalone=True,
            liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz",
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
