"""Where one HTTP request waits for what its prompts produce."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from lightllm_server.errors import ServerError
from lightllm_server.messages import ChoiceText, Ended, PromptText

__all__ = ["Item", "Mailbox"]


@dataclass(frozen=True, slots=True)
class Item:
    """A word about prompt `prompt_index` of the HTTP request."""

    prompt_index: int
    word: PromptText | ChoiceText | Ended


# tokens with their alternatives: about 10 MB
_MAX_WEIGHT = 65_536


def _weight(item: Item) -> int:
    if isinstance(item.word, ChoiceText):
        return 1 + len(item.word.token_ids) + sum(map(len, item.word.tops))
    return 1


class Mailbox:
    """A bounded queue that is emptied whole, so that a slow reader catches up in one write.

    With `whole` the reader is only woken by the end of a prompt, and is bounded by the request's
    own length: waking it for each token would be half of the work.
    """

    __slots__ = ("_error", "_items", "_max_weight", "_waiter", "_weight", "_whole")

    def __init__(self, *, whole: bool = False, max_weight: int = _MAX_WEIGHT) -> None:
        self._whole = whole
        self._items: list[Item] = []
        self._weight = 0
        self._max_weight = max_weight
        self._waiter: asyncio.Future[None] | None = None
        self._error: ServerError | None = None

    def put(self, item: Item) -> bool:
        """False where the reader has fallen so far behind that the item is dropped."""
        if self._whole:
            self._items.append(item)
            if isinstance(item.word, Ended):
                self._wake()
            return True
        weight = _weight(item)
        if self._items and self._weight + weight > self._max_weight:
            return False
        self._weight += weight
        self._items.append(item)
        self._wake()
        return True

    def fail(self, error: ServerError) -> None:
        """Make the reader raise `error` once it has taken what is already here."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Item]:
        """Everything that has arrived, at least one item; raises what `fail` was given."""
        while not self._items:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        items, self._items = self._items, []
        self._weight = 0
        return items
