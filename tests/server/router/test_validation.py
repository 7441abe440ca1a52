"""The router's own check of requests: field, what it got, what is allowed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightllm_server.messages import Generate, SamplingParams
from lightllm_server.router.validation import find_fault


def fault(prompt: list[int], **sampling: object) -> str:
    message = Generate(
        request_id=1,
        prompt_ids=tuple(prompt),
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
    )
    return find_fault(
        message,
        np.array(prompt, dtype=np.int64),
        max_len=20,
        num_slots=40,
        max_rows=4,
        vocab_size=100,
    )


@pytest.mark.parametrize(
    ("prompt", "sampling", "words"),
    [
        ([], {}, ["prompt_ids", "no token", "at least 1"]),
        ([1] * 20, {}, ["prompt_ids", "20", "at most 19"]),
        ([1, 100], {}, ["prompt_ids", "100", "0 to 99"]),
        ([1], {"max_new_tokens": 0}, ["sampling.max_new_tokens", "got 0", "at least 1"]),
        ([1], {"n": 5}, ["sampling.n", "5", "at most 4"]),
        ([1] * 10, {"n": 4, "max_new_tokens": 9}, ["max_new_tokens", "9", "at most 7", "n=4"]),
        ([1], {"temperature": math.nan}, ["sampling.temperature", "nan"]),
        ([1], {"temperature": -1.0}, ["sampling.temperature", "-1.0"]),
        ([1], {"top_p": 1.5}, ["sampling.top_p", "1.5", "1.0"]),
        ([1], {"top_p": 0.0}, ["sampling.top_p", "greater than 0"]),
        ([1], {"min_p": math.inf}, ["sampling.min_p", "inf"]),
        ([1], {"repetition_penalty": 0.0}, ["sampling.repetition_penalty", "0"]),
        ([1], {"presence_penalty": math.inf}, ["sampling.presence_penalty"]),
        ([1], {"frequency_penalty": math.nan}, ["sampling.frequency_penalty"]),
        ([1], {"logit_bias": {100: 1.0}}, ["sampling.logit_bias", "100", "0 to 99"]),
        ([1], {"logit_bias": {5: math.nan}}, ["sampling.logit_bias", "5", "nan"]),
        ([1], {"stop_token_ids": (100,)}, ["sampling.stop_token_ids", "100", "0 to 99"]),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    prompt: list[int], sampling: dict[str, object], words: list[str]
) -> None:
    text = fault(prompt, **sampling)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        ([0, 99], {}),
        ([1] * 19, {"max_new_tokens": 1000}),
        ([1] * 10, {"n": 4, "max_new_tokens": 7}),
        ([1], {"temperature": 5.0, "top_p": 0.1, "logit_bias": {99: -100.0}, "min_p": 1.0}),
    ],
)
def test_a_good_request_passes(prompt: list[int], sampling: dict[str, object]) -> None:
    assert fault(prompt, **sampling) == ""
