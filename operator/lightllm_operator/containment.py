"""Whether a live object has everything that a manifest asks for. Pure."""

from __future__ import annotations

from typing import Any

__all__ = ["contains"]


def contains(live: Any, wanted: Any) -> bool:
    """Every field of `wanted` is in `live` with an equal value; the API server's defaults and other
    managers' fields are allowed beside them. Lists must agree item by item; empty equals absent."""
    if isinstance(wanted, dict):
        if not isinstance(live, dict):
            return not wanted and live is None
        return all(contains(live.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        items = live or []
        return len(items) == len(wanted) and all(map(contains, items, wanted))
    return bool(live == wanted) or str(live) == str(wanted)
