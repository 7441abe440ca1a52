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


class Mailbox:
    """An unbounded queue that is emptied whole, so that a slow reader catches up in one write.

    What bounds it is `max_new_tokens` and the reader's stall limit (`stream.py`).
    """

    __slots__ = ("_error", "_items", "_waiter")

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: ServerError | None = None

    def put(self, item: Item) -> None:
        self._items.append(item)
        self._wake()

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
        return items
