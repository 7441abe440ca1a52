"""What goes wrong, as types.

OperatorError
├ SpecError         a field of the spec is wrong in a way that the schema cannot say
├ RefusedError     the spec cannot be run with this model or these nodes; no retry helps
├ NotLeaderError   another replica may lead by now, so nothing is written
├ WriteWantedError by what the watch cache shows; the API server is asked before it is done
└ ApiError          the API server refused or did not answer; `status` says which
"""

from __future__ import annotations

__all__ = [
    "ApiError",
    "NotLeaderError",
    "OperatorError",
    "RefusedError",
    "SpecError",
    "WriteWantedError",
]


class OperatorError(Exception):
    """Base of all."""


class SpecError(OperatorError):
    """`field`: its path, e.g. spec.extraArgs[0]."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class RefusedError(OperatorError):
    """`reason`: the condition's, in one word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NotLeaderError(OperatorError):
    """The lease is not surely ours."""


class WriteWantedError(OperatorError):
    """What was read is not fresh enough for this write."""


class ApiError(OperatorError):
    """status: HTTP status of the answer, 0 without one."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
