"""One example call of a public launcher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Call"]


@dataclass(frozen=True, slots=True)
class Call:
    """`make` builds the launcher's arguments, on the meta device as far as it goes: their shapes
    and strides are real, they take no memory, and reading one on the host raises.

    case: what sets the call apart from others of the launcher
    row: (key, config) of a shipped table that the call is to use
    """

    launcher: Callable[..., Any]
    case: str
    make: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    row: tuple[Any, Any] | None = None

    @property
    def launcher_name(self) -> str:
        return f"{self.launcher.__module__}.{self.launcher.__name__}"

    @property
    def name(self) -> str:
        return f"{self.launcher_name} {self.case}".strip()

    def run(self) -> None:
        arguments, options = self.make()
        self.launcher(*arguments, **options)
