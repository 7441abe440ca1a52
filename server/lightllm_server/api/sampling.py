"""From a request schema to `SamplingParams`, checked against the engine's limits."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from lightllm_server.api.lightllm_schema import GenerateParameters
from lightllm_server.api.limits import Limits
from lightllm_server.api.openai_schema import OpenAiSampling
from lightllm_server.errors import RequestError
from lightllm_server.messages import SamplingParams

__all__ = ["Length", "check_n", "fit", "from_lightllm", "from_openai"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """The wanted output: at most `max_new` tokens, or, where None, all that fits."""

    max_new: int | None
    field: str
    min_new: int = 0
    min_field: str = "min_tokens"


def _seed(seed: int | None) -> int:
    return random.getrandbits(63) if seed is None else seed % 2**63


def _logit_bias(bias: dict[str, float] | None, limits: Limits) -> dict[int, float]:
    result = {int(key): value for key, value in (bias or {}).items()}
    _check_ids("logit_bias", result, limits)
    return result


def _check_ids(field: str, ids: Iterable[int], limits: Limits) -> None:
    for token_id in ids:
        if token_id >= limits.vocab_size:
            raise RequestError(
                f"{field}: token id {token_id} is outside the vocabulary, "
                f"must be below {limits.vocab_size}",
                field=field,
            )


def check_n(field: str, n: int, limits: Limits) -> None:
    if n > limits.max_n:
        raise RequestError(f"{field}: got {n}, must be at most {limits.max_n}", field=field)


def from_openai(
    body: OpenAiSampling,
    limits: Limits,
    *,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """OpenAI's defaults: temperature 1. The length is set by `fit`."""
    check_n("n", body.n or 1, limits)
    _check_ids("stop_token_ids", body.stop_token_ids or (), limits)
    temperature = 1.0 if body.temperature is None else body.temperature
    return SamplingParams(
        temperature=temperature,
        top_p=body.top_p or 1.0,
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body.logit_bias, limits),
        seed=_seed(body.seed),
        n=body.n or 1,
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def from_lightllm(params: GenerateParameters, limits: Limits) -> SamplingParams:
    """LightLLM's defaults: greedy unless `do_sample`, which alone makes `temperature` count."""
    n = params.n or params.best_of
    if params.n and params.best_of not in (1, params.n):
        raise RequestError(
            f"parameters.best_of: got {params.best_of}, must equal n", field="parameters.best_of"
        )
    check_n("parameters.best_of", n, limits)
    _check_ids("parameters.stop_token_ids", params.stop_token_ids or (), limits)
    return SamplingParams(
        temperature=params.temperature if params.do_sample else 0.0,
        top_p=params.top_p,
        top_k=max(params.top_k, 0),
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=_logit_bias(params.logit_bias, limits),
        seed=_seed(params.seed),
        n=n,
        ignore_eos=params.ignore_eos,
        stop_token_ids=tuple(params.stop_token_ids or ()),
    )


def fit(num_prompt_tokens: int, length: Length, n: int, limits: Limits) -> tuple[int, int]:
    """The output's (most, least) tokens; raises RequestError where prompt + output do not fit."""
    if length.max_new == 0:
        raise RequestError(f"{length.field}: got 0, must be at least 1", field=length.field)
    room = limits.max_req_total_len - num_prompt_tokens
    # the samples share the prompt's slots and have each their own for the output
    pool_room = (limits.max_total_token_num - num_prompt_tokens) // n
    max_new = length.max_new if length.max_new is not None else min(room, pool_room)
    if room < 1 or max_new > room:
        raise RequestError(
            f"{length.field}: prompt of {num_prompt_tokens} tokens + {max(max_new, 1)} new tokens "
            f"exceed the limit of {limits.max_req_total_len} tokens per request",
            field=length.field,
            code="context_length_exceeded",
        )
    if max_new > pool_room or max_new < 1:
        raise RequestError(
            f"{length.field}: prompt of {num_prompt_tokens} tokens + {n} × {max(max_new, 1)} new "
            f"tokens exceed the KV cache of {limits.max_total_token_num} tokens",
            field=length.field,
            code="context_length_exceeded",
        )
    if length.min_new > max_new:
        raise RequestError(
            f"{length.min_field}: got {length.min_new}, must be at most {max_new}",
            field=length.min_field,
        )
    return max_new, length.min_new
