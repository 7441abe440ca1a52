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
        was = old.get(condition["type"], ("Unknown", ""))
        if _is_news(condition, *was):
            well = _is_fine(condition) or condition["reason"] in _WANTED
            severity = "Normal" if well else "Warning"
            notes[condition["type"]] = (severity, condition["reason"], condition["message"])
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


def _is_news(condition: Object, status_before: str, reason_before: str) -> bool:
    reason, fine = condition["reason"], _is_fine(condition)
    if (condition["status"], reason) == (status_before, reason_before):
        return False
    if reason in _IDLE or (reason_before in _IDLE and fine):
        return False
    # nothing was known yet, or nothing was there
    starts = reason_before in _STARTING or (
        status_before == "Unknown" and reason_before != "Downloading"
    )
    goes_on = fine or reason in _STARTING
    return not (starts and goes_on) or reason in _NEWS


def _is_fine(condition: Object) -> bool:
    return condition["status"] in (_WISHED.get(condition["type"], "True"), "Unknown") or (
        condition["reason"] in ("Downloading", "RolloutComplete")
    )
