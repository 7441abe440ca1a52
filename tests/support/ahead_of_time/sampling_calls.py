"""Calls of the penalties, sampling and log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ahead_of_time.call import Call
from ahead_of_time.model_shapes import MODELS, empty
from lightllm_kernels.logprobs import token_logprobs, top_logprobs
from lightllm_kernels.penalties import add_logit_bias, apply_penalties, count_tokens
from lightllm_kernels.sample_tokens import make_random_rows, sample_tokens
from lightllm_kernels.score_limits import score_limits
from lightllm_kernels.token_noise import gumbel_noise

__all__ = ["calls"]

_VOCABS = sorted({model.vocab for model in MODELS} | {151936, 50257})
_ROWS, _STATE_ROWS = 256, 1024


def calls(sm: int) -> list[Call]:
    """The same for each `sm`."""
    return [call for vocab in _VOCABS for call in _vocab_calls(vocab)]


def _call(launcher: Callable[..., Any], case: str, *arguments: Any, **options: Any) -> Call:
    return Call(launcher, case, lambda: (arguments, options))


def _vocab_calls(vocab: int) -> list[Call]:
    case = f"vocab {vocab}"
    logits = empty(_ROWS, vocab, dtype=torch.float32)
    indices = empty(100, dtype=torch.int64)
    values = empty(100, dtype=torch.float32)
    seen = empty(_STATE_ROWS, vocab, dtype=torch.bool)
    counts = empty(_STATE_ROWS, vocab, dtype=torch.int32)
    penalties = dict.fromkeys(("repetition", "presence", "frequency"), values)
    filters = {
        "temperature": values,
        "top_k": indices,
        "top_p": values,
        "min_p": values,
    }
    return [
        _call(apply_penalties, case, logits, indices, indices, seen, counts, **penalties),
        _call(count_tokens, case, counts, indices, indices),
        _call(add_logit_bias, case, logits, indices, indices, values),
        _call(token_logprobs, case, logits, empty(_ROWS, dtype=torch.int64)),
        _call(top_logprobs, case, logits, 5),
        _call(score_limits, case, logits, indices, **filters),
        *(
            _call(gumbel_noise, f"{case}, {name}", indices, indices, token_ids)
            for name, token_ids in (
                ("the same ids in each row", empty(vocab, dtype=torch.int32)),
                ("ids per row", empty(100, 256, dtype=torch.int32)),
            )
        ),
        *_sample_calls(case, logits),
    ]


def _sample_calls(case: str, logits: torch.Tensor) -> list[Call]:
    random_rows = make_random_rows(
        [0, 3], [1.0, 0.7], [0, 40], [1.0, 0.9], [0.0, 0.1], [1, 2], [10, 20], device="meta"
    )
    assert random_rows is not None, "two rows are not greedy"
    plain = replace(random_rows, max_top_k=0, truncates=False, has_top_p=False)
    return [
        _call(sample_tokens, f"{case}, greedy", logits, None),
        _call(sample_tokens, f"{case}, random", logits, plain),
        _call(sample_tokens, f"{case}, filtered", logits, random_rows),
    ]
