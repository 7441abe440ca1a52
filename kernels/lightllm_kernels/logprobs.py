"""Log-probabilities of chosen and of best tokens: log softmax without materialising it."""

from __future__ import annotations

import torch

from lightllm_kernels.checks import require_shape

__all__ = ["token_logprobs", "top_logprobs"]


def token_logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """logits: [N, V] float32, ids: [N] int64 -> log softmax(logits)[i, ids[i]], [N] float32."""
    require_shape("ids", ids, logits.shape[0])
    return logits.gather(1, ids.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)


def top_logprobs(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """logits: [N, V] float32 -> the `count` best (logprobs [N, count] float32, ids [N, count]
    int64), best first.
    """
    best = logits.topk(min(count, logits.shape[1]))
    return best.values - logits.logsumexp(1, keepdim=True), best.indices
