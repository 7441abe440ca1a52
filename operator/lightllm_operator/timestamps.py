"""Times as the API server writes them: RFC 3339, in UTC, to the second."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["timestamp_now", "unix_seconds"]


def timestamp_now() -> str:
    """As the API server writes metav1.Time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def unix_seconds(timestamp: str) -> float:
    """Seconds since 1970; ValueError if it is no timestamp."""
    return datetime.fromisoformat(timestamp).timestamp()
