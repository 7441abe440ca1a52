"""Log-probabilities of chosen and of best tokens: log softmax without materialising it.

On a GPU one program reads a row once and keeps the running maximum and the sum scaled by it
(Milakov and Gimelshein, 2018).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightllm_kernels.checks import require_rows, require_shape
from lightllm_kernels.triton_launch import launch, runs_triton

__all__ = ["token_logprobs", "token_logprobs_reference", "top_logprobs"]

# 8 elements a thread
_BLOCK, _NUM_WARPS = 4096, 16


def token_logprobs_reference(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """logits: [N, V], ids: [N] int64 -> [N] float32, by way of the whole log softmax."""
    return logits.float().log_softmax(-1).gather(1, ids.unsqueeze(1)).squeeze(1)


@triton.jit(do_not_specialize_on_alignment=["ids_ptr"])
def _log_softmax_kernel(
    logits_ptr,
    ids_ptr,
    out_ptr,
    vocab,
    stride_logits_row,
    stride_ids,
    CHOOSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = logsumexp of the row, or if CHOOSES the chosen logit less that."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits_row
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocab, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        logits = tl.load(row_ptr + offs, mask=offs < vocab, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, logits)
        # a lane that saw -inf alone has no sum yet
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(largest - shift) + tl.exp(logits - shift)
        largest = higher
    best = tl.max(largest, axis=0)
    shift = tl.where(best == float("-inf"), 0.0, best)
    result = tl.log(tl.sum(total * tl.exp(largest - shift), axis=0)) + shift
    if CHOOSES:
        chosen = tl.load(ids_ptr + row * stride_ids)
        result = tl.load(row_ptr + chosen).to(tl.float32) - result
    tl.store(out_ptr + row, result)


def _launch(logits: torch.Tensor, ids: torch.Tensor | None) -> torch.Tensor:
    require_rows("logits", logits)
    out = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    if logits.shape[0]:
        launch(
            _log_softmax_kernel,
            (logits.shape[0],),
            logits,
            logits if ids is None else ids,
            out,
            logits.shape[1],
            logits.stride(0),
            0 if ids is None else ids.stride(0),
            CHOOSES=ids is not None,
            BLOCK=_BLOCK,
            num_warps=_NUM_WARPS,
        )
    return out


def token_logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """logits: [N, V] float32, ids: [N] int64 -> log softmax(logits)[i, ids[i]], [N] float32."""
    require_shape("ids", ids, logits.shape[0])
    if runs_triton(logits):
        return _launch(logits, ids)
    return logits.gather(1, ids.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)


def top_logprobs(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """logits: [N, V] float32 -> the `count` best (logprobs [N, count] float32, ids [N, count]
    int64), best first.
    """
    best = logits.topk(min(count, logits.shape[1]))
    if runs_triton(logits):
        return best.values - _launch(logits, None).unsqueeze(1), best.indices
    return best.values - logits.logsumexp(1, keepdim=True), best.indices
