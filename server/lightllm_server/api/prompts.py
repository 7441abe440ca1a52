"""From a request's prompt to token ids: size checked first, tokenized in the workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lightllm_server.api.limits import Limits
from lightllm_server.api.openai_schema import Message
from lightllm_server.api.tokenize import TokenizePool
from lightllm_server.errors import RequestError
from lightllm_server.messages import ChatMessage

__all__ = ["PromptValue", "check_ids", "encode_chat", "encode_prompts", "split_prompts"]

PromptValue = str | list[int]


def split_prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[PromptValue]:
    """One entry per prompt, whichever of OpenAI's four forms was used."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


async def encode_prompts(
    pool: TokenizePool,
    prompts: Sequence[PromptValue],
    limits: Limits,
    field: str,
    *,
    add_special_tokens: bool = True,
) -> list[tuple[int, ...]]:
    """Token ids of each prompt; raises RequestError where one is empty, too long or outside."""
    for prompt in prompts:
        _check_size(prompt, limits, field)
    encoded = await asyncio.gather(
        *(_encode(pool, prompt, add_special_tokens=add_special_tokens) for prompt in prompts)
    )
    for token_ids in encoded:
        _check_length(token_ids, limits, field)
    return list(encoded)


async def _encode(
    pool: TokenizePool, prompt: PromptValue, *, add_special_tokens: bool
) -> tuple[int, ...]:
    if isinstance(prompt, str):
        return await pool.encode_text(prompt, add_special_tokens=add_special_tokens)
    return tuple(prompt)


async def encode_chat(
    pool: TokenizePool, messages: Sequence[Message], limits: Limits
) -> tuple[int, ...]:
    """Token ids of the rendered conversation; raises RequestError."""
    texts = [message.text for message in messages]
    names = [message.name or "" for message in messages]
    _check_bytes(sum(map(len, texts)) + sum(map(len, names)), limits, "messages")
    chat = tuple(
        # OpenAI's newer name of the same thing, which chat templates do not know
        ChatMessage("system" if message.role == "developer" else message.role, text, name)
        for message, text, name in zip(messages, texts, names, strict=True)
    )
    token_ids = await pool.encode_chat(chat)
    _check_length(token_ids, limits, "messages")
    return token_ids


def _check_size(prompt: PromptValue, limits: Limits, field: str) -> None:
    if isinstance(prompt, str):
        _check_bytes(len(prompt), limits, field)
        return
    _check_length(prompt, limits, field)
    check_ids(prompt, limits, field)


def check_ids(token_ids: list[int], limits: Limits, field: str) -> None:
    """Raises RequestError where one is outside the vocabulary, or there are too many."""
    if len(token_ids) > limits.max_req_total_len:
        raise RequestError(
            f"{field}: got {len(token_ids)} tokens, must be at most {limits.max_req_total_len}",
            field=field,
        )
    worst = max(token_ids, default=0)
    if worst >= limits.vocab_size:
        raise RequestError(
            f"{field}: token id {worst} is outside the vocabulary, "
            f"must be below {limits.vocab_size}",
            field=field,
        )


def _check_bytes(num_chars: int, limits: Limits, field: str) -> None:
    # a character has at least one byte, so this refuses nothing that could fit
    if num_chars > limits.max_prompt_bytes:
        raise RequestError(
            f"{field}: got {num_chars} characters, more than {limits.max_prompt_bytes} bytes never "
            f"fit into {limits.max_req_total_len} tokens",
            field=field,
            code="context_length_exceeded",
        )


def _check_length(token_ids: Sequence[int], limits: Limits, field: str) -> None:
    if not token_ids:
        raise RequestError(f"{field}: got no tokens, at least one is needed", field=field)
    # one token of output must fit too
    if len(token_ids) >= limits.max_req_total_len:
        raise RequestError(
            f"{field}: got {len(token_ids)} tokens, must be below {limits.max_req_total_len} "
            "(prompt + output)",
            field=field,
            code="context_length_exceeded",
        )
