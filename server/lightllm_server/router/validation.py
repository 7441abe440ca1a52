"""The router's own check of a `Generate`: the api has checked it before, the engine must never meet
what it cannot do.

Messages go to the client: field, what it got, what is allowed.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lightllm_server.messages import Generate, SamplingParams

__all__ = ["find_fault"]


def find_fault(
    message: Generate,
    prompt: npt.NDArray[np.int64],
    *,
    max_len: int,
    num_slots: int,
    max_rows: int,
    vocab_size: int,
) -> str:
    """What is wrong with the request, or "". prompt: [prompt tokens] its `prompt_ids`."""
    sampling = message.sampling
    if not len(prompt):
        return "prompt_ids: got no token, at least 1 is needed"
    if len(prompt) >= max_len:
        return f"prompt_ids: got {len(prompt)} tokens, at most {max_len - 1} are allowed"
    if not 0 <= int(prompt.min()) <= int(prompt.max()) < vocab_size:
        worst = int(prompt[(prompt < 0) | (prompt >= vocab_size)][0])
        return f"prompt_ids: got token id {worst}, allowed is 0 to {vocab_size - 1}"
    if sampling.max_new_tokens == 0:
        return "sampling.max_new_tokens: got 0, at least 1 is needed"
    if sampling.n > max_rows:
        return f"sampling.n: got {sampling.n}, at most {max_rows} are allowed"
    limit = min(sampling.max_new_tokens, max_len - len(prompt))
    if len(prompt) + sampling.n * limit > num_slots:
        allowed = (num_slots - len(prompt)) // sampling.n
        return (
            f"sampling.max_new_tokens: got {sampling.max_new_tokens}, at most "
            f"{max(0, allowed)} are allowed: the KV cache holds {num_slots} tokens, and the "
            f"prompt's {len(prompt)} with n={sampling.n} outputs must fit"
        )
    return _find_sampling_fault(sampling, vocab_size)


def _find_sampling_fault(sampling: SamplingParams, vocab_size: int) -> str:
    bounds = {
        "temperature": (0.0, math.inf),
        "top_p": (0.0, 1.0),
        "min_p": (0.0, 1.0),
        "repetition_penalty": (0.0, math.inf),
        "presence_penalty": (-math.inf, math.inf),
        "frequency_penalty": (-math.inf, math.inf),
    }
    for name, (low, high) in bounds.items():
        value = getattr(sampling, name)
        if not (math.isfinite(value) and low <= value <= high):
            return f"sampling.{name}: got {value}, allowed is a number from {low} to {high}"
    if sampling.repetition_penalty == 0:
        return "sampling.repetition_penalty: got 0, it must be greater than 0"
    if sampling.top_p == 0:
        return "sampling.top_p: got 0, it must be greater than 0"
    for token_id, bias in sampling.logit_bias.items():
        if not (token_id < vocab_size and math.isfinite(bias)):
            allowed_ids = f"finite values for ids 0 to {vocab_size - 1}"
            return f"sampling.logit_bias: got {bias} for id {token_id}, allowed are {allowed_ids}"
    ids = np.array(sampling.stop_token_ids, dtype=np.int64)
    if len(ids) and int(ids.max()) >= vocab_size:
        return f"sampling.stop_token_ids: got {int(ids.max())}, allowed is 0 to {vocab_size - 1}"
    return ""
