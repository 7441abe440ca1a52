"""The tokenize workers as the api sees them: text in, ids out, no work on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from lightllm_server.errors import ChannelError, RequestError
from lightllm_server.messages import (
    ApiToTokenizer,
    ChatMessage,
    EncodeChat,
    Encoded,
    EncodeText,
    TokenizerToApi,
)

__all__ = ["TokenizePool", "WorkerSender"]

_DEADLINE_S = 60.0


class WorkerSender(Protocol):
    """What the pool needs of the channel to one worker."""

    async def send(self, message: ApiToTokenizer) -> None: ...


class TokenizePool:
    """Sends each job to the worker with the fewest characters outstanding."""

    def __init__(self, senders: Sequence[WorkerSender], *, deadline_s: float = _DEADLINE_S) -> None:
        self._senders = senders
        self._outstanding = [0] * len(senders)
        self._jobs: dict[int, asyncio.Future[TokenizerToApi]] = {}
        self._last_id = 0
        self._deadline_s = deadline_s

    def __len__(self) -> int:
        """Jobs whose answer somebody waits for."""
        return len(self._jobs)

    async def encode_text(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Raises RequestError where the text cannot be encoded, or not in time."""
        job = EncodeText(job_id=self._new_id(), text=text, add_special_tokens=add_special_tokens)
        return await self._run(job, len(text))

    async def encode_chat(
        self, messages: tuple[ChatMessage, ...], *, add_generation_prompt: bool = True
    ) -> tuple[int, ...]:
        """Raises RequestError where the chat template refuses the messages, or is not in time."""
        job = EncodeChat(
            job_id=self._new_id(), messages=messages, add_generation_prompt=add_generation_prompt
        )
        return await self._run(job, sum(len(message.content) for message in messages))

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def _run(self, job: ApiToTokenizer, size: int) -> tuple[int, ...]:
        worker = min(range(len(self._senders)), key=self._outstanding.__getitem__)
        answer = asyncio.get_running_loop().create_future()
        self._jobs[job.job_id] = answer
        self._outstanding[worker] += size + 1
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._senders[worker].send(job)
                reply = await answer
        except (TimeoutError, ChannelError) as error:
            raise RequestError(
                "the tokenizer did not answer in time", status=503, code="unavailable"
            ) from error
        finally:
            # also when the client has left: the worker's late answer finds no job
            self._outstanding[worker] -= size + 1
            del self._jobs[job.job_id]
        if isinstance(reply, Encoded):
            return reply.token_ids
        raise RequestError(reply.error)

    def deliver(self, reply: TokenizerToApi) -> None:
        """Take one answer; that of a job given up is dropped."""
        answer = self._jobs.get(reply.job_id)
        if answer is not None and not answer.done():
            answer.set_result(reply)
