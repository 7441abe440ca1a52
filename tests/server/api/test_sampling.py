"""Defaults, lengths and bounds that depend on the model."""

from __future__ import annotations

import pytest

from lightllm_server.api.lightllm_schema import GenerateParameters
from lightllm_server.api.limits import Limits
from lightllm_server.api.openai_schema import CompletionRequest
from lightllm_server.api.sampling import Length, fit, from_lightllm, from_openai
from lightllm_server.errors import RequestError

LIMITS = Limits(
    vocab_size=100, max_req_total_len=50, max_total_token_num=200, max_n=4, max_prompt_bytes=500
)


def completion(**fields):
    return from_openai(CompletionRequest(prompt="x", **fields), LIMITS)


def test_openai_defaults():
    sampling = completion()
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.n) == (1.0, 1.0, 0, 1)
    assert completion().seed != completion().seed


def test_lightllm_is_greedy_unless_told_to_sample():
    greedy = from_lightllm(GenerateParameters(temperature=0.7), LIMITS)
    assert greedy.temperature == 0
    sampled = from_lightllm(GenerateParameters(do_sample=True), LIMITS)
    assert sampled.temperature == 1.0
    hot = from_lightllm(GenerateParameters(do_sample=True, temperature=1.3, top_k=5), LIMITS)
    assert (hot.temperature, hot.top_k) == (1.3, 5)


def test_seeds_of_any_sign_fit_the_message():
    assert completion(seed=5).seed == 5
    assert 0 <= completion(seed=-5).seed < 2**63
    assert completion(seed=-5).seed == completion(seed=-5).seed


def test_ids_outside_the_vocabulary_are_refused():
    assert completion(logit_bias={"99": 1.0}).logit_bias == {99: 1.0}
    for fields in ({"logit_bias": {"100": 1.0}}, {"stop_token_ids": [100]}):
        with pytest.raises(RequestError, match="must be below 100") as error:
            completion(**fields)
        assert error.value.field in fields


def test_samples_are_bounded_by_the_option():
    assert completion(n=4).n == 4
    with pytest.raises(RequestError, match="at most 4"):
        completion(n=5)


def length(max_new: int | None, min_new: int = 0) -> Length:
    return Length(max_new=max_new, field="max_tokens", min_new=min_new)


def test_the_rest_of_the_context_is_the_default():
    assert fit(10, length(None), 1, LIMITS) == (40, 0)
    assert fit(49, length(None), 1, LIMITS) == (1, 0)


def test_prompt_and_output_must_fit_the_request_limit():
    assert fit(10, length(40), 1, LIMITS) == (40, 0)
    with pytest.raises(RequestError, match="50 tokens per request") as error:
        fit(10, length(41), 1, LIMITS)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(RequestError):
        fit(50, length(None), 1, LIMITS)


def test_all_samples_must_fit_the_kv_cache():
    tight = Limits(
        vocab_size=100, max_req_total_len=100, max_total_token_num=180, max_n=8, max_prompt_bytes=1
    )
    assert fit(20, length(40), 4, tight) == (40, 0)
    with pytest.raises(RequestError, match="KV cache of 180 tokens"):
        fit(20, length(41), 4, tight)
    assert fit(20, length(None), 4, tight) == (40, 0)


def test_least_and_most_tokens_must_agree():
    assert fit(10, length(5, 5), 1, LIMITS) == (5, 5)
    with pytest.raises(RequestError, match="min_tokens: got 6, must be at most 5"):
        fit(10, length(5, 6), 1, LIMITS)
    with pytest.raises(RequestError, match="must be at least 1"):
        fit(10, length(0), 1, LIMITS)
