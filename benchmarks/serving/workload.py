"""The benchmark's requests: the same 64 for every engine, made from one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

NUM_REQUESTS = 64
CONCURRENCY = 16
PROMPT_LENS = (32, 256)
OUTPUT_LENS = (32, 128)
# ids below this are special tokens of the random model
FIRST_PLAIN_ID = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt as token ids and the exact number of tokens to generate for it."""

    prompt_ids: list[int]
    output_len: int


def make_requests(vocab_size: int, seed: int = 0, count: int = NUM_REQUESTS) -> list[Request]:
    """`count` requests with uniform prompt and output lengths."""
    rng = random.Random(seed)
    return [
        Request(
            prompt_ids=[rng.randrange(FIRST_PLAIN_ID, vocab_size) for _ in range(prompt_len)],
            output_len=rng.randint(*OUTPUT_LENS),
        )
        for prompt_len in (rng.randint(*PROMPT_LENS) for _ in range(count))
    ]


def by_length(requests: list[Request]) -> list[list[Request]]:
    """Batches of similar prompt length, for who has all requests before it begins."""
    return batches(sorted(requests, key=lambda request: len(request.prompt_ids)))


def batches(requests: list[Request], size: int = CONCURRENCY) -> list[list[Request]]:
    """The requests in order of arrival, `size` at a time."""
    return [requests[start : start + size] for start in range(0, len(requests), size)]
