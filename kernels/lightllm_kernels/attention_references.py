"""What prefill and decode attention compute, in plain torch and float32: what the tests believe,
and the CPU form of attention with options.
"""

from __future__ import annotations

import torch

from lightllm_kernels.attention_batch import DecodeBatch, PrefillBatch
from lightllm_kernels.attention_options import PLAIN, AttentionOptions, adjust
from lightllm_kernels.write_kv import dequantise

__all__ = ["decode_attention_reference", "prefill_attention_reference"]


def prefill_attention_reference(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    req_to_slots: torch.Tensor,
    batch: PrefillBatch,
    *,
    scale: float,
    options: AttentionOptions = PLAIN,
) -> torch.Tensor:
    """As `prefill_attention`, from `req_to_slots` and the batch's tensors alone; float32, one
    chunk and head at a time.
    """
    out = torch.empty_like(query)
    group = query.shape[1] // (kv.shape[1] // 2)
    begin = 0
    for row, start, length in zip(
        batch.rows.tolist(), batch.starts.tolist(), batch.lens.tolist(), strict=True
    ):
        slots = req_to_slots[row, : start + length].long()
        states = kv[slots].float() if kv_scales is None else dequantise(kv[slots], kv_scales[slots])
        positions = torch.arange(start + length, device=kv.device)
        distance = positions[start:].unsqueeze(1) - positions
        for head in range(query.shape[1]):
            key, value = states[:, head // group], states[:, kv.shape[1] // 2 + head // group]
            scores = query[begin : begin + length, head].float() @ key.T * scale
            slope = None if options.alibi_slopes is None else options.alibi_slopes[head]
            weights = adjust(scores, distance, slope, options).softmax(-1)
            out[begin : begin + length, head] = (weights @ value).to(out.dtype)
        begin += length
    return out


def decode_attention_reference(
    query: torch.Tensor,
    kv: torch.Tensor,
    kv_scales: torch.Tensor | None,
    req_to_slots: torch.Tensor,
    batch: DecodeBatch,
    *,
    scale: float,
    options: AttentionOptions = PLAIN,
) -> torch.Tensor:
    """As `decode_attention`, from `req_to_slots` and the batch's tensors alone; float32, one
    request at a time.
    """
    out = torch.zeros_like(query)
    group = query.shape[1] // (kv.shape[1] // 2)
    slopes = None if options.alibi_slopes is None else options.alibi_slopes.unsqueeze(1)
    for index, (row, length) in enumerate(
        zip(batch.rows.tolist(), batch.seq_lens.tolist(), strict=True)
    ):
        if not length:
            continue
        slots = req_to_slots[row, :length].long()
        states = kv[slots].float() if kv_scales is None else dequantise(kv[slots], kv_scales[slots])
        key, value = states.repeat_interleave(group, dim=1).chunk(2, dim=1)
        scores = torch.einsum("hd,lhd->hl", query[index].float(), key) * scale
        distance = torch.arange(length - 1, -1, -1, device=kv.device)
        weights = adjust(scores, distance, slopes, options).softmax(-1)
        out[index] = torch.einsum("hl,lhd->hd", weights, value).to(out.dtype)
    return out
