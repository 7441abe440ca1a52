"""The events that a resource's conditions make when they change. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["transitions"]

Object = Mapping[str, Any]

# the status that is good news, where it is not "True"; either is for Progressing
_WISHED = {"ScalingLimited": "False", "GPUsUnderused": "False"}
# reasons that a resource begins with
_STARTING = (
    "Disabled",
    "NoReadyReplicas",
    "NotStarted",
    "Progressing",
    "ScaledToZero",
    "Suspended",
)
# no good news, but as the spec asks
_WANTED = ("Disabled", "ScaledToZero", "Suspended")
# what the lowest count means for a small load, which comes and goes
_IDLE = ("TooFewReplicas",)
# told also where all went well before
_NEWS = ("Downloading", "Serving")


def transitions(before: Object, after: Object) -> list[tuple[str, str, str]]:
    """(type "Normal" or "Warning", reason, message) of every condition that changed its reason,
    but for those that only say that a start goes on as it should, or that the load is small; and of
    a new number of pods."""
    old = {c["type"]: (c["status"], c["reason"]) for c in before.get("conditions", ())}
    notes: dict[str, tuple[str, str, str]] = {}
    for condition in after["conditions"]:
        kind, reason, message = condition["type"], condition["reason"], condition["message"]
        now, was = (condition["status"], reason), old.get(kind, ("Unknown", ""))
        fine = _is_fine(kind, *now)
        calm = fine or reason in _STARTING
        idle = reason in _IDLE or (was[1] in _IDLE and fine)
        if was == now or idle or (calm and _is_start(*was) and reason not in _NEWS):
            continue
        notes[kind] = ("Normal" if fine or reason in _WANTED else "Warning", reason, message)
    # Ready repeats the condition that it follows from
    cause = notes.pop("Ready", None)
    told = [] if cause is None else [cause]
    if cause is not None and cause[0] == "Warning":
        told = [] if any(cause[2].startswith(note[2]) for note in notes.values()) else told
    elif cause is not None:
        notes = {kind: note for kind, note in notes.items() if note[2] != cause[2]}
    return [*told, *_scaled(before, after), *dict.fromkeys(notes.values())]


def _scaled(before: Object, after: Object) -> list[tuple[str, str, str]]:
    was, now = before.get("desiredReplicas"), after["desiredReplicas"]
    if was is None or was == now:
        return []
    decided = after.get("autoscaling", {}).get("lastReason")
    return [("Normal", "Scaled", f"{was} to {now} pods" + (f": {decided}" if decided else ""))]


def _is_fine(kind: str, status: str, reason: str) -> bool:
    return status in (_WISHED.get(kind, "True"), "Unknown") or reason in (
        "Downloading",
        "RolloutComplete",
    )


def _is_start(status: str, reason: str) -> bool:
    """Nothing was known yet, or nothing was there."""
    return reason in _STARTING or (status == "Unknown" and reason != "Downloading")
