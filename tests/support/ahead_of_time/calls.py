"""Example calls of every public launcher that starts a Triton kernel."""

from __future__ import annotations

from ahead_of_time import attention_calls, elementwise_calls, sampling_calls
from ahead_of_time.call import Call

__all__ = ["calls"]


def calls(sm: int) -> list[Call]:
    """The calls to compile for `sm`, the shipped config rows of that target included."""
    return [*attention_calls.calls(sm), *elementwise_calls.calls(sm), *sampling_calls.calls(sm)]
