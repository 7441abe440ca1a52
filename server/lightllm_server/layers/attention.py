"""Attention of one layer over the token-granular KV pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightllm_kernels.attention_batch import DecodeBatch, PrefillBatch
from lightllm_kernels.decode_attention import decode_attention
from lightllm_kernels.prefill_attention import prefill_attention
from lightllm_kernels.workspace import Workspace
from lightllm_kernels.write_kv import write_kv
from lightllm_server.layers.rotary import RotaryEmbedding

__all__ = ["Attention", "AttentionState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionState:
    """What every layer's attention needs of the step: T = P prefill tokens, then B decode tokens.

    positions: [T] int64; slots: [T] int64, where each token's key and value go
    kv: per layer [S+1, 2G, D]; kv_scales: per layer [S+1, 2G] float16, or None
    req_to_slots: [R, M] int32, already holding this step's slots
    prefill, decode: None if there are no such tokens
    """

    positions: torch.Tensor
    slots: torch.Tensor
    kv: Sequence[torch.Tensor]
    kv_scales: Sequence[torch.Tensor] | None
    req_to_slots: torch.Tensor
    prefill: PrefillBatch | None
    decode: DecodeBatch | None
    workspace: Workspace


class Attention:
    """Rotates, writes the step's keys and values to the pool, attends. Heads are this rank's."""

    def __init__(
        self,
        layer_index: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rotary: RotaryEmbedding,
        scale: float | None = None,
    ) -> None:
        self._layer_index = layer_index
        self._heads, self._kv_heads, self._head_dim = num_heads, num_kv_heads, head_dim
        self._rotary = rotary
        self._scale = head_dim**-0.5 if scale is None else scale

    def __call__(self, qkv: torch.Tensor, state: AttentionState) -> torch.Tensor:
        """qkv: [T, (H + 2G) * D] as QKVParallelLinear leaves it, changed in place -> [T, H * D].

        The result aliases the state's workspace until the next layer's attention.
        """
        tokens, heads, kv_heads = qkv.shape[0], self._heads, self._kv_heads
        states = qkv.view(tokens, heads + 2 * kv_heads, self._head_dim)
        self._rotary(states[:, : heads + kv_heads], state.positions)
        kv = state.kv[self._layer_index]
        kv_scales = None if state.kv_scales is None else state.kv_scales[self._layer_index]
        key, value = states[:, heads : heads + kv_heads], states[:, heads + kv_heads :]
        write_kv(key, value, kv, kv_scales, state.slots)
        query = states[:, :heads]
        out = state.workspace.take("attention", (tokens, heads, self._head_dim), qkv.dtype)
        num_prefill = 0
        if state.prefill is not None:
            num_prefill = state.prefill.num_tokens
            prefill_attention(
                query[:num_prefill],
                kv,
                kv_scales,
                state.req_to_slots,
                state.prefill,
                scale=self._scale,
                workspace=state.workspace,
                out=out[:num_prefill],
            )
        if state.decode is not None:
            decode_attention(
                query[num_prefill:],
                kv,
                kv_scales,
                state.req_to_slots,
                state.decode,
                scale=self._scale,
                workspace=state.workspace,
                out=out[num_prefill:],
            )
        return out.view(tokens, heads * self._head_dim)
