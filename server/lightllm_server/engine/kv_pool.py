"""The KV cache: one flat pool of token slots per layer. Which slot belongs to whom is the
router's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["KVLayout", "KVPool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayout:
    """What one token's slot holds on one rank.

    num_kv_heads: G of this rank; head_dim: D; dtype: of the stored keys and values, int8 with one
    fp16 scale per token and head.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def is_quantised(self) -> bool:
        return self.dtype == torch.int8

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one slot over all layers, scales included."""
        head_bytes = self.head_dim * self.dtype.itemsize + 2 * self.is_quantised
        return self.num_layers * 2 * self.num_kv_heads * head_bytes


class KVPool:
    """The slots of all layers; slot S = `num_slots` is padding.

    layers: per layer kv [S+1, 2G, D], key heads first; layer_scales: per layer [S+1, 2G] float16,
    None unless int8.
    """

    def __init__(self, layout: KVLayout, num_slots: int, device: torch.device) -> None:
        self.layout = layout
        self.num_slots = num_slots
        shape = (layout.num_layers, num_slots + 1, 2 * layout.num_kv_heads)
        # pages are touched when slots are first written, so an idle pool costs no memory on the CPU
        kv = torch.empty((*shape, layout.head_dim), dtype=layout.dtype, device=device)
        # padding is read by masked attention, which needs it finite
        kv[:, num_slots] = 0
        self.layers = kv.unbind()
        self.layer_scales: tuple[torch.Tensor, ...] | None = None
        if layout.is_quantised:
            scales = torch.empty(shape, dtype=torch.float16, device=device)
            scales[:, num_slots] = 0
            self.layer_scales = scales.unbind()

    @property
    def padding_slot(self) -> int:
        return self.num_slots
