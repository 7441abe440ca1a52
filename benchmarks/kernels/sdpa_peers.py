"""Torch's own attention as a peer: each backend of SDPA that takes the arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from device_time import median_ms
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["sdpa_ms"]

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def sdpa_ms(
    query: torch.Tensor,
    layers: list[tuple[torch.Tensor, torch.Tensor]],
    *,
    mask: object = None,
    causal: bool = False,
    repeats: int,
) -> dict[str, float]:
    """Per backend the ms of all layers; backends that refuse are left out.

    query: [B, H, Q, D]; layers: keys and values [B, G, K, D], contiguous and without a table
    """
    group = query.shape[1] // layers[0][0].shape[1]

    def attend() -> None:
        for key, value in layers:
            functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=group > 1
            )

    return {
        f"SDPA {name}": ms
        for name, backend in _BACKENDS.items()
        if (ms := _ms(attend, backend, query.device, repeats)) is not None
    }


def _ms(
    attend: Callable[[], None], backend: SDPBackend, device: torch.device, repeats: int
) -> float | None:
    with warnings.catch_warnings(), sdpa_kernel(backend):
        # torch warns why a backend does not apply, then raises
        warnings.simplefilter("ignore")
        try:
            attend()
            return median_ms(attend, device, repeats=repeats)
        except (RuntimeError, TypeError):
            return None
