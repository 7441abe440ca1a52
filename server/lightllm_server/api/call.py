"""One HTTP request's prompts under way in the engine, and what they came to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from lightllm_server.api.in_flight import InFlight
from lightllm_server.api.mailbox import Item, Mailbox
from lightllm_server.errors import EngineError, RequestError
from lightllm_server.messages import (
    ChoiceText,
    Ended,
    FinishReason,
    PromptLogprobs,
    PromptText,
    RequestId,
    SamplingParams,
    TextOptions,
    TopLogprob,
)

__all__ = ["Call", "Completion", "PromptResult", "Usage", "collect"]


@dataclass(slots=True)
class Usage:
    """Tokens counted over all prompts and choices of a call."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Call:
    """Use as a context manager: leaving it aborts what has not ended."""

    def __init__(self, in_flight: InFlight, *, whole: bool = False) -> None:
        """whole: nothing is sent before the end, as for `collect`."""
        self._in_flight = in_flight
        self._mailbox = Mailbox(whole=whole)
        self._request_ids: list[RequestId] = []
        self._num_open = 0
        self._counted: dict[tuple[int, int], int] = {}
        self.usage = Usage()

    def submit(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sequence[SamplingParams],
        text: TextOptions,
        *,
        cache_salt: str,
        arrived_ns: int,
    ) -> None:
        """Send each prompt with its own sampling parameters."""
        for index, (prompt_ids, params) in enumerate(zip(prompts, sampling, strict=True)):
            self.usage.prompt_tokens += len(prompt_ids)
            self._num_open += 1
            self._request_ids.append(
                self._in_flight.submit(
                    self._mailbox,
                    index,
                    prompt_ids,
                    params,
                    text,
                    cache_salt=cache_salt,
                    arrived_ns=arrived_ns,
                )
            )

    async def items(self) -> AsyncIterator[list[Item]]:
        """What arrives, in batches, until every prompt has ended.

        Raises EngineError or RequestError where one of them failed.
        """
        while self._num_open:
            items = await self._mailbox.take()
            failed: Ended | None = None
            for item in items:
                failed = self._count(item) or failed
            yield items
            if failed is not None:
                raise _failure(failed)

    def _count(self, item: Item) -> Ended | None:
        word = item.word
        if isinstance(word, ChoiceText):
            key = (item.prompt_index, word.choice)
            self.usage.completion_tokens += word.num_tokens - self._counted.get(key, 0)
            self._counted[key] = word.num_tokens
        elif isinstance(word, Ended):
            self._num_open -= 1
            self.usage.cached_tokens += word.cached_tokens
            return word if word.outcome != "finished" else None
        return None

    def leave(self) -> None:
        """Abort what has not ended; twice is no error."""
        for request_id in self._request_ids:
            self._in_flight.abandon(request_id)

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()


def _failure(ended: Ended) -> EngineError | RequestError:
    if ended.outcome == "aborted":
        return RequestError("the request was ended by the server", status=503, code="aborted")
    return EngineError(ended.error or "the engine failed")


@dataclass(slots=True)
class Completion:
    """One finished choice; lists run over its tokens."""

    text_parts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)
    token_bytes: list[bytes | None] = field(default_factory=list)
    special: list[bool] = field(default_factory=list)
    tops: list[tuple[TopLogprob, ...]] = field(default_factory=list)
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    matched_stop: str | None = None

    def add(self, piece: ChoiceText) -> None:
        self.text_parts.append(piece.text)
        self.token_ids += piece.token_ids
        self.logprobs += piece.logprobs
        self.token_texts += piece.token_texts
        self.token_bytes += piece.token_bytes
        self.special += piece.special
        self.tops += piece.tops
        self.num_tokens = piece.num_tokens
        self.finish_reason = piece.finish_reason or self.finish_reason
        self.matched_stop = piece.matched_stop or self.matched_stop

    @property
    def text(self) -> str:
        return "".join(self.text_parts)


@dataclass(slots=True)
class PromptResult:
    """All choices of one prompt, and its own logprobs where they were asked for."""

    choices: list[Completion]
    prompt_logprobs: PromptLogprobs | None = None


async def collect(call: Call, num_prompts: int, num_choices: int) -> list[PromptResult]:
    """Wait for the end of all prompts; raises as `Call.items`."""
    results = [PromptResult([Completion() for _ in range(num_choices)]) for _ in range(num_prompts)]
    async for items in call.items():
        for item in items:
            word = item.word
            if isinstance(word, ChoiceText):
                results[item.prompt_index].choices[word.choice].add(word)
            elif isinstance(word, PromptText):
                results[item.prompt_index].prompt_logprobs = word.prompt_logprobs
    return results
