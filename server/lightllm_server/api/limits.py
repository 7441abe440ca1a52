"""What the model and the options allow a request; known once the engine has started."""

from __future__ import annotations

from dataclasses import dataclass

from lightllm_server.config import ServerConfig
from lightllm_server.engine_info import EngineInfo

__all__ = ["Limits", "limits_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Lengths in tokens unless named otherwise."""

    vocab_size: int
    max_req_total_len: int
    max_total_token_num: int
    max_n: int
    max_prompt_bytes: int


def limits_of(config: ServerConfig, info: EngineInfo, longest_token_bytes: int) -> Limits:
    """A prompt of more than `max_prompt_bytes` has too many tokens, whatever they are."""
    return Limits(
        vocab_size=info.vocab_size,
        max_req_total_len=info.max_req_total_len,
        max_total_token_num=info.max_total_token_num,
        max_n=min(config.http.max_n, info.running_max_req_size),
        max_prompt_bytes=info.max_req_total_len * longest_token_bytes,
    )
