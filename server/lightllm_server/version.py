"""Which version this is."""

from __future__ import annotations

from importlib import metadata

__all__ = ["version"]


def version() -> str:
    """That of the installed package; a checkout that is on the path alone has none."""
    try:
        return metadata.version("lightllm-kubernetes")
    except metadata.PackageNotFoundError:
        return "0+source"
