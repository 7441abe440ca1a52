"""Charts as SVG: lines in panels under each other that share one time axis, and groups of bars."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Group", "Line", "Panel", "bars", "chart"]

_WIDTH, _LEFT, _RIGHT, _TOP, _PANEL, _GAP, _BOTTOM = 860, 60, 20, 70, 190, 40, 45
_BAR, _BAR_LEFT = 9, 170
# Okabe and Ito's, told apart also by the colour-blind
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclass(frozen=True)
class Line:
    """y over x; the same name has the same colour in each panel."""

    name: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Panel:
    title: str
    lines: list[Line]


@dataclass(frozen=True)
class Group:
    """Bars beside each other; the same name has the same colour in each group."""

    label: str
    values: dict[str, float]


def chart(title: str, x_label: str, panels: list[Panel], *, end: float) -> str:
    """The SVG text; x runs from 0 to `end`, y from 0."""
    colours = _colours(line.name for panel in panels for line in panel.lines)
    height = _TOP + len(panels) * (_PANEL + _GAP) - _GAP + _BOTTOM
    parts = _head(title, colours, height)
    for index, panel in enumerate(panels):
        parts += _panel(panel, colours, _TOP + index * (_PANEL + _GAP), end)
    bottom = height - _BOTTOM
    for tick in _ticks(end, 8):
        parts.append(_text(_x(tick, end), bottom + 16, f"{tick:g}", anchor="middle"))
    parts.append(_text((_WIDTH + _LEFT) / 2, bottom + 34, x_label, anchor="middle"))
    return "\n".join([*parts, "</svg>", ""])


def bars(title: str, x_label: str, groups: list[Group]) -> str:
    """The SVG text: lying bars, x from 0, the groups under each other."""
    colours = _colours(name for group in groups for name in group.values)
    most = max((value for group in groups for value in group.values.values()), default=1.0)
    tops, top = [], float(_TOP)
    for group in groups:
        tops.append(top)
        top += _BAR * (len(group.values) + 1)
    height = int(top) + _BOTTOM
    scale = (_WIDTH - _BAR_LEFT - _RIGHT) / most
    parts = _head(title, colours, height)
    for tick in _ticks(most, 8):
        at = _BAR_LEFT + tick * scale
        parts.append(f'<path d="M{at:.1f} {_TOP}V{top:.1f}" stroke="#dddddd" fill="none"/>')
        parts.append(_text(at, top + 14, f"{tick:g}", anchor="middle"))
    for group, start in zip(groups, tops, strict=True):
        middle = start + _BAR * len(group.values) / 2
        parts.append(_text(_BAR_LEFT - 8, middle + 4, group.label, anchor="end"))
        for index, (name, value) in enumerate(group.values.items()):
            parts.append(
                f'<rect x="{_BAR_LEFT}" y="{start + _BAR * index:.1f}" '
                f'width="{value * scale:.1f}" height="{_BAR - 1}" fill="{colours[name]}"/>'
            )
    parts.append(_text((_WIDTH + _BAR_LEFT) / 2, top + 34, x_label, anchor="middle"))
    return "\n".join([*parts, "</svg>", ""])


def _colours(names: Iterable[str]) -> dict[str, str]:
    distinct = dict.fromkeys(names)
    return {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(distinct)}


def _head(title: str, colours: dict[str, str], height: int) -> list[str]:
    """Background, title and legend."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(_LEFT, 22, title, size=15),
    ]
    at = _LEFT
    for name, colour in colours.items():
        parts.append(f'<rect x="{at}" y="36" width="18" height="4" fill="{colour}"/>')
        parts.append(_text(at + 23, 43, name))
        at += 45 + 7 * len(name)
    return parts


def _panel(panel: Panel, colours: dict[str, str], top: float, end: float) -> list[str]:
    most = max((value for line in panel.lines for value in line.y), default=0.0)
    ticks = _ticks(max(most, 1.0), 4)
    highest = max(most, ticks[-1])

    def y(value: float) -> float:
        return top + _PANEL * (1 - value / highest)

    parts = [_text(_LEFT, top - 8, panel.title, size=13)]
    for tick in ticks:
        level = y(tick)
        parts.append(
            f'<path d="M{_LEFT} {level:.1f}H{_WIDTH - _RIGHT}" stroke="#dddddd" fill="none"/>'
        )
        parts.append(_text(_LEFT - 6, level + 4, f"{tick:g}", anchor="end"))
    for line in panel.lines:
        # steps: a value holds until the next one
        points = f"M{_x(line.x[0], end):.1f} {y(line.y[0]):.1f}" + "".join(
            f"H{_x(x, end):.1f}V{y(value):.1f}"
            for x, value, before in zip(line.x[1:], line.y[1:], line.y, strict=False)
            if value != before
        )
        points += f"H{_x(line.x[-1], end):.1f}"
        parts.append(
            f'<path d="{points}" stroke="{colours[line.name]}" stroke-width="1.7" fill="none"/>'
        )
    return parts


def _x(value: float, end: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / end


def _ticks(most: float, about: int) -> list[float]:
    """0 and up to `most`, in steps of 1, 2 or 5 times a power of ten."""
    raw = most / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [index * step for index in range(int(most / step) + 1)]


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )
