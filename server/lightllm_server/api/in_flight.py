"""Every accepted request, from `Generate` to its `Ended`, also when its client has left."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Protocol

from lightllm_server.api.mailbox import Item, Mailbox
from lightllm_server.errors import ChannelError, RequestError, ServerError
from lightllm_server.messages import (
    Abort,
    ApiToRouter,
    ChoiceText,
    Ended,
    Generate,
    PromptText,
    RequestId,
    SamplingParams,
    TextBatch,
    TextOptions,
)
from lightllm_server.status_page import Field, StatusRow

__all__ = ["Flight", "FlightObserver", "InFlight", "RouterSender"]

logger = logging.getLogger(__name__)


class RouterSender(Protocol):
    """What `InFlight` needs of the channel to the router."""

    async def send(self, message: ApiToRouter) -> None: ...


@dataclass(slots=True, eq=False)
class Flight:
    """One accepted request; times are CLOCK_MONOTONIC ns, 0 for what has not happened."""

    request_id: RequestId
    prompt_index: int
    mailbox: Mailbox | None
    num_prompt_tokens: int
    num_choices: int
    max_new_tokens: int
    arrived_ns: int
    accepted_ns: int
    first_token_ns: int = 0
    num_generated: int = 0


class FlightObserver(Protocol):
    """Told of each request's end, for metrics and for the service rate."""

    def ended(self, flight: Flight, ended: Ended, now_ns: int) -> None: ...


class InFlight:
    """Sends requests to the router and hands what comes back to their mailboxes.

    Sending is a queue of its own, so that accepting and aborting never wait and stay in order.
    """

    def __init__(self, sender: RouterSender, row: StatusRow, observer: FlightObserver) -> None:
        self._sender = sender
        self._row = row
        self._observer = observer
        self._flights: dict[RequestId, Flight] = {}
        self._outbox: asyncio.Queue[ApiToRouter] = asyncio.Queue()
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._flights)

    def submit(
        self,
        mailbox: Mailbox,
        prompt_index: int,
        prompt_ids: tuple[int, ...],
        sampling: SamplingParams,
        text: TextOptions,
        *,
        cache_salt: str = "",
        arrived_ns: int = 0,
    ) -> RequestId:
        """Accept a request; its words go to `mailbox`, the last one is an `Ended`."""
        self._last_id += 1
        request_id = RequestId(self._last_id)
        now = time.monotonic_ns()
        self._flights[request_id] = Flight(
            request_id,
            prompt_index,
            mailbox,
            len(prompt_ids),
            sampling.n,
            sampling.max_new_tokens,
            arrived_ns or now,
            now,
        )
        # counted before the router can count it as started, so that waiting is never negative
        self._row.add(Field.ACCEPTED)
        self._row.add(Field.ACCEPTED_TOKENS, len(prompt_ids))
        self._outbox.put_nowait(
            Generate(
                request_id=request_id,
                prompt_ids=prompt_ids,
                sampling=sampling,
                text=text,
                cache_salt=cache_salt,
                accepted_ns=now,
            )
        )
        return request_id

    def abandon(self, request_id: RequestId) -> None:
        """Nobody listens any more: abort, and go on tracking until the end. Twice is no error."""
        flight = self._flights.get(request_id)
        if flight is not None and flight.mailbox is not None:
            flight.mailbox = None
            self._outbox.put_nowait(Abort(request_id=request_id))

    def deliver(self, batch: TextBatch) -> None:
        """Take one batch from detok, in the order that `TextBatch` states."""
        now = time.monotonic_ns()
        for prompt in batch.prompts:
            self._pass_on(prompt)
        for choice in batch.choices:
            flight = self._pass_on(choice)
            if flight is not None:
                flight.num_generated += len(choice.token_ids)
                flight.first_token_ns = flight.first_token_ns or now
        for ended in batch.ended:
            flight = self._pass_on(ended)
            if flight is not None:
                del self._flights[flight.request_id]
                self._row.add(Field.ENDED)
                self._observer.ended(flight, ended, now)

    def _pass_on(self, word: PromptText | ChoiceText | Ended) -> Flight | None:
        flight = self._flights.get(RequestId(word.request_id))
        if flight is None:
            logger.warning("a word about unknown request %d was dropped", word.request_id)
            return None
        mailbox = flight.mailbox
        if mailbox is not None and not mailbox.put(Item(flight.prompt_index, word)):
            mailbox.fail(RequestError("the client reads too slowly", status=503, code="too_slow"))
            self.abandon(flight.request_id)
        return flight

    def fail_all(self, error: ServerError) -> None:
        """End every request that still runs with `error`, and abort it."""
        for flight in list(self._flights.values()):
            if flight.mailbox is not None:
                flight.mailbox.fail(error)
            self.abandon(flight.request_id)

    async def run_sender(self) -> None:
        """Send what was accepted, in order, for as long as the process lives."""
        while True:
            message = await self._outbox.get()
            try:
                await self._sender.send(message)
            except ChannelError:
                # the supervisor ends the tree if the router is gone; this request has no router
                logger.exception("the router does not take requests")
                self._drop(RequestId(message.request_id))

    def _drop(self, request_id: RequestId) -> None:
        flight = self._flights.pop(request_id, None)
        if flight is not None:
            self._row.add(Field.ENDED)
            if flight.mailbox is not None:
                flight.mailbox.fail(
                    RequestError(
                        "the engine does not take requests", status=503, code="unavailable"
                    )
                )
