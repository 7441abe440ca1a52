"""Rotary position embedding, neox style: the head's first half is rotated against its second
(RoFormer, 2021).

With rotary width W (W/2 = columns of the tables), dims 0..W-1 of each head are rotated, the rest
pass through: x1' = x1 cos - x2 sin, x2' = x2 cos + x1 sin, where x1 = x[: W/2], x2 = x[W/2 : W].
Done in float32.
"""

from __future__ import annotations

import torch

from lightllm_kernels.checks import require, require_rows, require_shape

__all__ = ["rotary_embedding", "rotary_embedding_reference"]


def rotary_embedding_reference(
    states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """states: [T, N, D], cos/sin: [P, W/2] float32, positions: [T] -> rotated copy [T, N, D]."""
    half = cos.shape[-1]
    row_cos, row_sin = cos[positions.long()].unsqueeze(1), sin[positions.long()].unsqueeze(1)
    first, second = states[..., :half].float(), states[..., half : 2 * half].float()
    rotated = [first * row_cos - second * row_sin, second * row_cos + first * row_sin]
    return torch.cat([*(r.to(states.dtype) for r in rotated), states[..., 2 * half :]], dim=-1)


def _rotate_(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    half = cos.shape[-1]
    first, second = states[..., :half], states[..., half : 2 * half]
    if states.dtype == torch.float32:
        rotated = first * cos
        rotated.addcmul_(second, sin, value=-1.0)
        second.mul_(cos).addcmul_(first, sin)
        first.copy_(rotated)
        return
    wide_first, wide_second = first.float(), second.float()
    first.copy_(wide_first * cos - wide_second * sin)
    second.copy_(wide_second.mul_(cos).addcmul_(wide_first, sin))


def rotary_embedding(
    query: torch.Tensor,
    key: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
) -> None:
    """Rotate query and key heads in place.

    query: [T, H, D]; key: [T, G, D] or None (then `query` holds both side by side, one pass)
    cos, sin: [P, W/2] float32, W <= D
    positions: [T] int32 or int64, each < P
    """
    require_rows("query", query)
    require(
        2 * cos.shape[-1] <= query.shape[-1],
        f"rotary width {2 * cos.shape[-1]} exceeds head_dim {query.shape[-1]}",
    )
    require_shape("positions", positions, query.shape[0])
    row_cos = cos.index_select(0, positions).unsqueeze(1)
    row_sin = sin.index_select(0, positions).unsqueeze(1)
    _rotate_(query, row_cos, row_sin)
    if key is not None:
        require_rows("key", key)
        _rotate_(key, row_cos, row_sin)
