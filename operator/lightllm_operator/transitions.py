"""The events that a resource's conditions make when they change. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["transitions"]

Object = Mapping[str, Any]

# the status that is good news, where it is not "True"; either is for Progressing
_WISHED = {"ScalingLimited": "False", "GPUsUnderused": "False"}
# reasons that a resource begins with
_STARTING = ("Disabled", "NoReadyReplicas", "NotStarted", "Progressing")
# what the lowest count means for a small load, which comes and goes
_IDLE = ("TooFewReplicas",)
# told also where all went well before
_NEWS = ("Downloading", "Serving")


def transitions(before: Object, after: Object) -> list[tuple[str, str, str]]:
    """(type "Normal" or "Warning", reason, message) of every condition that changed its reason,
    but for those that only say that a start goes on as it should, or that the load is small."""
    old = {c["type"]: (c["status"], c["reason"]) for c in before.get("conditions", ())}
    notes = []
    for condition in after["conditions"]:
        now = condition["status"], condition["reason"]
        was = old.get(condition["type"], ("Unknown", ""))
        fine = _is_fine(condition["type"], *now)
        calm = fine or condition["reason"] in _STARTING
        idle = condition["reason"] in _IDLE or (was[1] in _IDLE and fine)
        if was == now or idle or (calm and _is_start(*was) and condition["reason"] not in _NEWS):
            continue
        notes.append(("Normal" if fine else "Warning", condition["reason"], condition["message"]))
    # Ready repeats the condition that it follows from
    return list(dict.fromkeys(notes))


def _is_fine(kind: str, status: str, reason: str) -> bool:
    return status in (_WISHED.get(kind, "True"), "Unknown") or reason in (
        "Downloading",
        "RolloutComplete",
    )


def _is_start(status: str, reason: str) -> bool:
    """Nothing was known yet, or nothing was there."""
    return reason in _STARTING or (status == "Unknown" and reason != "Downloading")
