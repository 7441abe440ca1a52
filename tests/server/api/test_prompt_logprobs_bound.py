"""Prompt log probabilities travel in one message: what the api lets through must fit into it."""

import pytest

from lightllm_server.api import completions
from lightllm_server.channels import MAX_MESSAGE_BYTES
from lightllm_server.errors import RequestError
from lightllm_server.messages import (
    Codec,
    DetokToApi,
    PromptLogprobs,
    PromptText,
    TextBatch,
    TopLogprob,
)

NUM_TOPS = 7
MOST = completions._MAX_PROMPT_LOGPROBS // (1 + NUM_TOPS)


def test_the_most_that_is_allowed_fits_into_a_message():
    completions._check_prompt_logprobs(MOST, NUM_TOPS)
    # no vocabulary of natural text has a longer average
    top = TopLogprob(2**31 - 1, -1.23456789, "x" * 32)
    part = PromptLogprobs((-1.2,) * MOST, ((top,) * NUM_TOPS,) * MOST, ("x" * 32,) * MOST)
    frame = Codec(DetokToApi).encode(TextBatch(prompts=(PromptText(1, part),)))
    assert len(frame) < MAX_MESSAGE_BYTES


def test_one_token_more_is_refused_by_name():
    with pytest.raises(RequestError, match=f"logprobs: {NUM_TOPS} .* {MOST + 1} prompt tokens"):
        completions._check_prompt_logprobs(MOST + 1, NUM_TOPS)
