"""The server's options, read off the dataclass fields of `config.py`, and how a value is parsed.

Lives here: names, types, bounds, defaults of single options. Not here: where values come from and
which of them contradict each other (`config_sources.py`).
"""

from __future__ import annotations

import dataclasses
import math
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lightllm_server.config import EngineConfig, HttpConfig, LogConfig, RouterConfig
from lightllm_server.errors import ConfigError

__all__ = ["GROUPS", "Option", "all_options"]

# field of ServerConfig, its class, the title in --help
GROUPS: tuple[tuple[str, type, str], ...] = (
    ("engine", EngineConfig, "model and engine"),
    ("router", RouterConfig, "router"),
    ("http", HttpConfig, "HTTP"),
    ("log", LogConfig, "log"),
)

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One field of one group; `kind` is str, int, float or bool, `choices` those of a Literal."""

    group: str
    name: str
    kind: type
    choices: tuple[str, ...]
    optional: bool
    default: Any
    help: str
    ge: float | None
    le: float | None
    metavar: str | None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "LIGHTLLM_" + self.name.upper()

    def parse(self, value: Any, source: str) -> Any:
        """Turn text, or a value of a config file, into the field's type.

        Raises ConfigError that names `source`, what it got and what is allowed.
        """
        if value is None and self.optional:
            return None
        parsed = self._convert(value, source)
        if self.choices and parsed not in self.choices:
            raise ConfigError(f"{source}: got {value!r}, allowed: {', '.join(self.choices)}")
        if self.kind in (int, float):
            self._check_bounds(parsed, source)
        return parsed

    def _convert(self, value: Any, source: str) -> Any:
        wrong = ConfigError(f"{source}: got {_short(value)}, expected {self._expected()}")
        is_bool = isinstance(value, bool)
        if self.kind is bool:
            if is_bool:
                return value
            text = str(value).lower()
            if text not in _TRUE | _FALSE:
                raise wrong
            return text in _TRUE
        if self.kind is str:
            # a YAML scalar such as `off` or 8 is no text, though the command line cannot tell
            if is_bool and self.choices:
                value = "on" if value else "off"
            if not isinstance(value, str):
                raise wrong
            return value
        if is_bool or not isinstance(value, str | int | float):
            raise wrong
        # 8.5 and "8.0" are no whole numbers
        if self.kind is int and isinstance(value, float):
            raise wrong
        try:
            return self.kind(value)
        except (ValueError, OverflowError):
            raise wrong from None

    def _check_bounds(self, value: float, source: str) -> None:
        low, high = self.ge, self.le
        above = low is None or value >= low
        below = high is None or value <= high
        if not (above and below and math.isfinite(value)):
            raise ConfigError(f"{source}: got {value}, allowed: {low} to {high}")

    def _expected(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        return words[self.kind]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _of_field(group: str, item: dataclasses.Field[Any], hint: Any) -> Option:
    members = [hint]
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
    (member,) = members
    choices = get_args(member) if get_origin(member) is Literal else ()
    return Option(
        group=group,
        name=item.name,
        kind=str if choices else member,
        choices=choices,
        optional=members != [hint],
        default=item.default,
        help=item.metadata["help"],
        ge=item.metadata["ge"],
        le=item.metadata["le"],
        metavar=item.metadata["metavar"],
    )


def all_options() -> dict[str, Option]:
    """Every option by field name, in the order of `GROUPS`; names are unique over the groups."""
    options: dict[str, Option] = {}
    for group, owner, _ in GROUPS:
        hints = get_type_hints(owner)
        for item in dataclasses.fields(owner):
            assert item.name not in options, f"{item.name} is in two groups"
            options[item.name] = _of_field(group, item, hints[item.name])
    return options
