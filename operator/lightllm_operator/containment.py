"""Whether a live object is as a manifest was applied. Pure.

A manifest is applied with a digest of it as an annotation, and is compared field by field besides:
what it asked for before and asks for no more changes the digest, and what others have edited since
changes a field. The API server writes some values otherwise than they were sent, so fields are
compared by what they mean.
"""

from __future__ import annotations

import decimal
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from lightllm_operator.names import ANNOTATION_APPLIED

__all__ = ["contains", "stamped"]

# of the pods' template the pin tells what it was made from; replicas have another manager
_UNDIGESTED = ("template", "replicas")
# maps whose values are quantities
_QUANTITIES = ("requests", "limits", "resourceFieldRef")
# maps of the user's, in which an empty text is a value like any other
_TEXTS = ("annotations", "labels", "matchLabels", "nodeSelector")
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?\d+))?")
_UNITS = {
    "": "1",
    **{unit: f"1e{3 * power}" for power, unit in enumerate("num", -3)},
    **{unit: f"1e{3 * power}" for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": str(1024**power) for power, unit in enumerate("KMGTPE", 1)},
}
_NANO = decimal.Decimal("1e-9")
# what is out of all bounds is no number, and equals none
_EXACT = decimal.Context(prec=60, rounding=decimal.ROUND_UP, traps=[])


def stamped(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its digest as an annotation; what identifies the object is not in it."""
    metadata = manifest["metadata"]
    digested = [
        metadata.get("labels", {}),
        metadata.get("annotations", {}),
        {k: v for k, v in manifest.get("spec", {}).items() if k not in _UNDIGESTED},
    ]
    text = json.dumps(digested, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    annotations = {**metadata.get("annotations", {}), ANNOTATION_APPLIED: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def contains(live: Any, wanted: Any) -> bool:
    """Every field of `wanted` is in `live` with an equal value; the API server's defaults and other
    managers' fields are allowed beside them. Lists must agree item by item; empty equals absent;
    quantities are compared as numbers."""
    return _contains(live, wanted, "")


def _contains(live: Any, wanted: Any, within: str) -> bool:
    """within: the name of the map or list that has them."""
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return not wanted and live is None
        return all(
            _contains(live.get(key), value, key if isinstance(value, Mapping | list) else within)
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        items = live or []
        return len(items) == len(wanted) and all(
            _contains(item, each, within) for item, each in zip(items, wanted, strict=True)
        )
    if live is None:
        return wanted is None or (wanted == "" and within not in _TEXTS)
    if live == wanted:
        return True
    return within in _QUANTITIES and _number(live) == _number(wanted)


def _number(quantity: Any) -> decimal.Decimal:
    """To the nano, which is as fine as the API server counts; NaN for other texts."""
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None:
        return decimal.Decimal("NaN")
    number, unit, exponent = match.groups()
    value = _EXACT.create_decimal(f"{number}e{exponent or 0}")
    return _EXACT.multiply(value, decimal.Decimal(_UNITS[unit or ""])).quantize(
        _NANO, context=_EXACT
    )
