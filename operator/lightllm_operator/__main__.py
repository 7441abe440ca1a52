"""`python -m lightllm_operator`: run until SIGTERM."""

from __future__ import annotations

import asyncio
import os
import sys

import kopf

from lightllm_operator import logs
from lightllm_operator.errors import OperatorError
from lightllm_operator.handlers import register
from lightllm_operator.settings import from_environment


def main() -> int:
    """Exit code 78 where a setting is missing or wrong."""
    try:
        settings = from_environment(os.environ)
    except OperatorError as error:
        print(f"lightllm-operator: error: {error}", file=sys.stderr)  # noqa: T201
        return 78
    logs.configure(settings.log_format)
    registry = kopf.OperatorRegistry()
    register(registry, settings)
    asyncio.run(
        kopf.operator(
            registry=registry,
            clusterwide=settings.namespace is None,
            namespaces=[settings.namespace] if settings.namespace else [],
            standalone=True,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
