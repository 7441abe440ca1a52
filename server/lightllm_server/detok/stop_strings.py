"""Stop strings, matched on text as it streams.

Which match counts does not depend on how the text was cut into tokens: the one that is complete
first; of several that end at the same character, the longest. Text is held back only as long as it
may still become a stop string.
Source: Aho and Corasick, "Efficient string matching", 1975; a state's depth is the length of what
must be held.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Match", "StopMatcher"]


@dataclass(frozen=True, slots=True)
class Match:
    """A stop string at `start:end` of the text, in characters."""

    stop: str
    start: int
    end: int


class _Automaton:
    """States are the prefixes of the stop strings; 0 is the empty one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.moves: list[dict[str, int]] = [{}]
        self.depths = [0]
        # longest stop string that ends in this state
        self.found: list[str | None] = [None]
        self.fallbacks = [0]
        for stop in stops:
            self._insert(stop)
        self._link()

    def _insert(self, stop: str) -> None:
        state = 0
        for depth, char in enumerate(stop, start=1):
            following = self.moves[state].get(char)
            if following is None:
                following = len(self.moves)
                self.moves[state][char] = following
                self.moves.append({})
                self.depths.append(depth)
                self.found.append(None)
                self.fallbacks.append(0)
            state = following
        self.found[state] = stop or None

    def _link(self) -> None:
        """Breadth first: each state falls back to the longest suffix that is a state."""
        states = deque(self.moves[0].values())
        while states:
            state = states.popleft()
            for char, following in self.moves[state].items():
                states.append(following)
                fallback = self.step(self.fallbacks[state], char)
                self.fallbacks[following] = fallback
                if self.found[following] is None:
                    self.found[following] = self.found[fallback]

    def step(self, state: int, char: str) -> int:
        while char not in self.moves[state]:
            if state == 0:
                return 0
            state = self.fallbacks[state]
        return self.moves[state][char]


# requests of one client mostly share their stop strings
_automaton = lru_cache(maxsize=256)(_Automaton)


class StopMatcher:
    """Follows the text of one choice; empty stop strings never match."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._automaton = _automaton(stops)
        self._state = 0
        self._num_chars = 0

    def feed(self, text: str) -> Match | None:
        """Read on; the first match ends the text, nothing is read after it."""
        automaton, state = self._automaton, self._state
        for index, char in enumerate(text, start=self._num_chars + 1):
            state = automaton.step(state, char)
            stop = automaton.found[state]
            if stop is not None:
                return Match(stop, index - len(stop), index)
        self._state = state
        self._num_chars += len(text)
        return None

    @property
    def num_safe(self) -> int:
        """Characters from the start of the text that no later match can take back."""
        return self._num_chars - self._automaton.depths[self._state]
