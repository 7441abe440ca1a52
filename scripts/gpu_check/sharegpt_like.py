"""Requests whose lengths are like ShareGPT's under the filter of LightLLM's published benchmark.

Log-normal lengths, prompt >= 4, output >= 4, prompt <= 1024, prompt + output <= 2048 tokens (what
does not fit is drawn again). The medians and spreads were set so that the kept requests have the
means that the vLLM paper gives for ShareGPT, about 161 prompt and 338 output tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

MAX_PROMPT, MAX_TOTAL, MIN_LEN = 1024, 2048, 4
_PROMPT = (4.52, 1.36)
_OUTPUT = (5.5, 1.0)


@dataclass(frozen=True, slots=True)
class Request:
    """due: seconds after the start."""

    due: float
    prompt_ids: tuple[int, ...]
    output_len: int


def make_requests(
    count: int, *, rate: float, vocab_size: int, seed: int = 0, shrink: int = 1
) -> list[Request]:
    """Poisson arrivals; shrink: divides all lengths, for dry runs."""
    rng = random.Random(seed)
    requests, due = [], 0.0
    for _ in range(count):
        prompt_len, output_len = _lens(rng)
        due += rng.expovariate(rate)
        ids = tuple(rng.randrange(3, vocab_size) for _ in range(max(1, prompt_len // shrink)))
        requests.append(Request(due, ids, max(1, output_len // shrink)))
    return requests


def _lens(rng: random.Random) -> tuple[int, int]:
    while True:
        prompt_len, output_len = (
            int(rng.lognormvariate(*_PROMPT)),
            int(rng.lognormvariate(*_OUTPUT)),
        )
        fits = prompt_len <= MAX_PROMPT and prompt_len + output_len <= MAX_TOTAL
        if fits and prompt_len >= MIN_LEN and output_len >= MIN_LEN:
            return prompt_len, output_len
