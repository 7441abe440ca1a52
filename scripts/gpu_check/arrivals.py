"""Requests that arrive: seeded, the same for every engine and way to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sharegpt_like


@dataclass(frozen=True, slots=True)
class Request:
    """due: seconds after the start."""

    due: float
    prompt_ids: tuple[int, ...]
    output_len: int


def make_requests(
    count: int, *, rate: float, vocab_size: int, seed: int = 0, shrink: int = 1
) -> list[Request]:
    """ShareGPT-like lengths, Poisson arrivals; shrink: divides all lengths, for dry runs."""
    rng = np.random.default_rng(seed)
    lens = sharegpt_like.lengths(count, rng)
    dues = np.cumsum(rng.exponential(1 / rate, count)).tolist()
    requests = []
    for due, prompt_len, output_len in zip(dues, *(each.tolist() for each in lens), strict=True):
        ids = rng.integers(3, vocab_size, max(1, prompt_len // shrink)).tolist()
        requests.append(Request(due, tuple(ids), max(1, output_len // shrink)))
    return requests
