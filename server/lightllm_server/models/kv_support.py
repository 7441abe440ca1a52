"""Which models may keep their KV cache in int8, and what a token costs. No torch here."""

from __future__ import annotations

from lightllm_server.models.config import ModelConfig

__all__ = ["int8_kv_support", "kv_bytes_per_token"]

_MAX_HEAD_DIM = 256
_SCALE_BYTES = 2


def int8_kv_support(config: ModelConfig) -> tuple[bool, str]:
    """Whether int8 KV (one fp16 scale per token and head) works for the model, and why."""
    if config.head_dim > _MAX_HEAD_DIM:
        return False, f"head_dim {config.head_dim} is above {_MAX_HEAD_DIM}"
    return True, f"{config.family} attention with head_dim {config.head_dim}"


def kv_bytes_per_token(config: ModelConfig, *, element_bytes: int, tp: int = 1) -> int:
    """Bytes of one token's keys and values on one rank; element_bytes 1 means int8 with scales.

    Fewer KV heads than ranks are replicated.
    """
    kv_heads = max(1, config.num_kv_heads // tp)
    head_bytes = config.head_dim * element_bytes
    if element_bytes == 1:
        head_bytes += _SCALE_BYTES
    return config.num_layers * 2 * kv_heads * head_bytes
