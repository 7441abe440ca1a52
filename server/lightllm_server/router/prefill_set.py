"""The rows with known tokens still to be computed, and how they share a step's token budget."""

from __future__ import annotations

from collections.abc import Iterator

from lightllm_server.router.request import Choice, Request
from lightllm_server.router.row_table import RowTable

__all__ = ["PrefillSet", "waiting_siblings"]


class PrefillSet:
    """Siblings that wait for their prompt are not in it."""

    def __init__(self, rows: RowTable) -> None:
        self._rows = rows
        self._choices: dict[Choice, None] = {}

    def __len__(self) -> int:
        return len(self._choices)

    def __iter__(self) -> Iterator[Choice]:
        return iter(self._choices)

    def add(self, choice: Choice) -> None:
        self._choices[choice] = None

    def discard(self, choice: Choice) -> None:
        self._choices.pop(choice, None)

    def needs(self) -> list[int]:
        """Tokens that each row may still prefill."""
        return [self._need(choice) for choice in self._choices]

    def split(self, budget: int, alone: Request | None) -> list[tuple[Choice, int]]:
        """Which rows prefill how many tokens: an even share each, the rest in order of arrival.

        alone: the only request that may, if any.
        """
        choices = [c for c in self._choices if alone is None or c.request is alone]
        if budget <= 0 or not choices:
            return []
        choices.sort(key=lambda choice: (choice.request.order, choice.index))
        needs = [self._need(choice) for choice in choices]
        share = max(1, budget // len(choices))
        counts = []
        for need in needs:
            counts.append(min(need, share, budget))
            budget -= counts[-1]
        for i, need in enumerate(needs):
            more = min(need - counts[i], budget)
            counts[i] += more
            budget -= more
        return [(choice, n) for choice, n in zip(choices, counts, strict=True) if n]

    def _need(self, choice: Choice) -> int:
        """No further than the prompt while siblings wait for it."""
        end = len(choice.request.prompt) if waiting_siblings(choice) else len(choice.known)
        return end - int(self._rows.lengths[choice.row])


def waiting_siblings(lead: Choice) -> list[Choice]:
    """The request's other choices that have a row and wait for the prompt."""
    if len(lead.request.choices) == 1:
        return []
    return [c for c in lead.request.live if c is not lead and c.row >= 0 and c.node is None]
