"""Typed values of a JSON file; a refusal names file, field, value and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightllm_server.errors import ModelError

__all__ = ["JsonFields", "read_json_object"]

_MAX_BYTES = 64 * 2**20
_SHOWN = 80


def read_json_object(path: Path) -> JsonFields:
    """Raise ModelError if the file is missing, unreadable, huge, not JSON or not an object."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelError(path, f"larger than {_MAX_BYTES} bytes")
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(path, "no such file") from error
    except OSError as error:
        raise ModelError(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(path, f"is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(path, "is not a JSON object")
    return JsonFields(path, values)


class JsonFields:
    """One JSON object of a file; `prefix` is its dotted path in there. A null counts as absent."""

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self._values = values
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        return self._values.get(name)

    def refuse(self, name: str, allowed: str) -> ModelError:
        """The error that says which field has which value, and what is allowed."""
        shown = repr(self._values.get(name))
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        return ModelError(self.path, f"{self._prefix}{name} is {shown}, allowed: {allowed}")

    def integer(
        self, name: str, default: int | None = None, *, ge: int = 1, le: int = 2**31
    ) -> int:
        """`default` None means that the field is required."""
        if name not in self and default is not None:
            return default
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not ge <= value <= le:
            raise self.refuse(name, f"an integer from {ge} to {le}")
        return value

    def number(self, name: str, default: float | None = None, *, gt: float, le: float) -> float:
        """A finite number with `gt` < value <= `le`; `default` None means required."""
        if name not in self and default is not None:
            return default
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not gt < value <= le:
            raise self.refuse(name, f"a number above {gt:g}, at most {le:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        if name not in self:
            return default
        value = self._values[name]
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return value

    def choice(self, name: str, default: str | None, allowed: tuple[str, ...]) -> str:
        if name not in self and default is not None:
            return default
        value = self._values.get(name)
        if not isinstance(value, str) or value not in allowed:
            raise self.refuse(name, ", ".join(allowed))
        return value

    def section(self, name: str) -> JsonFields:
        """A nested object; empty if the field is absent."""
        value = self._values.get(name, {})
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.refuse(name, "an object")
        return JsonFields(self.path, value, f"{self._prefix}{name}.")

    def token_ids(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """An id or a list of ids inside the vocabulary; empty if the field is absent."""
        value = self._values.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for token_id in ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                raise self.refuse(name, "a token id or a list of token ids")
            if not 0 <= token_id < vocab_size:
                raise self.refuse(name, f"token ids from 0 to {vocab_size - 1}")
        return tuple(ids)
