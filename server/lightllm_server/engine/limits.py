"""Lengths that follow from the options and the model's config. No torch here."""

from __future__ import annotations

from lightllm_server.config import ServerConfig
from lightllm_server.errors import ConfigError
from lightllm_server.models.config import ModelConfig

__all__ = ["max_request_length"]

_DEFAULT_MAX_LENGTH = 16384


def max_request_length(config: ServerConfig, model: ModelConfig) -> int:
    """The longest prompt + output in tokens; raises ConfigError if the model is not made for it."""
    wanted = config.router.max_req_total_len
    if wanted is None:
        return min(model.max_length, _DEFAULT_MAX_LENGTH)
    if wanted > model.max_length:
        raise ConfigError(
            f"--max-req-total-len is {wanted}, allowed: at most the model's {model.max_length}"
        )
    return wanted
