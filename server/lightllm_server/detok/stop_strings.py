"""Stop strings, matched on text as it streams.

Which match counts does not depend on how the text was cut into tokens: the one that is complete
first; of several that end at the same character, the longest. Text is held back only as long as it
may still become a stop string.
Source: Knuth, Morris and Pratt, "Fast pattern matching in strings", 1977; the length of the prefix
matched so far is what must be held.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

__all__ = ["Match", "StopMatcher"]


@dataclass(frozen=True, slots=True)
class Match:
    """A stop string at `start:end` of the text, in characters."""

    stop: str
    start: int
    end: int


class _Pattern:
    """One stop string and how many of its characters the end of the text matches."""

    __slots__ = ("_borders", "num_matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        # _borders[i]: longest proper prefix of stop[:i + 1] that is also its suffix
        self._borders = array("I", bytes(4))
        length = 0
        for char in stop[1:]:
            length = self._step(length, char)
            self._borders.append(length)

    def _step(self, length: int, char: str) -> int:
        while length and self.stop[length] != char:
            length = self._borders[length - 1]
        return length + (self.stop[length] == char)

    def feed(self, text: str) -> int | None:
        """The index in `text` behind the first match, if there is one."""
        length, index = self.num_matched, 0
        while index < len(text):
            if length == 0:
                index = text.find(self.stop[0], index)
                if index < 0:
                    break
            length = self._step(length, text[index])
            index += 1
            if length == len(self.stop):
                return index
        self.num_matched = length
        return None


class StopMatcher:
    """Follows the text of one choice; empty stop strings never match."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._patterns = [_Pattern(stop) for stop in stops if stop]
        self._num_chars = 0

    def feed(self, text: str) -> Match | None:
        """Read on; the first match ends the text, nothing may be fed after it."""
        ends = [(pattern.feed(text), pattern.stop) for pattern in self._patterns]
        matches = [(self._num_chars + end, stop) for end, stop in ends if end is not None]
        if matches:
            end, stop = min(matches, key=lambda match: (match[0], -len(match[1])))
            return Match(stop, end - len(stop), end)
        self._num_chars += len(text)
        return None

    def skip(self, text: str) -> None:
        """Pass over text in which no match begins or ends; not after `feed`."""
        self._num_chars += len(text)

    @property
    def num_safe(self) -> int:
        """Characters from the start of the text that no later match can take back."""
        return self._num_chars - max((p.num_matched for p in self._patterns), default=0)
