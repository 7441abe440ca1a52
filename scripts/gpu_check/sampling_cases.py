"""The kernels of sampling against the CPU's form or the reference."""

from __future__ import annotations

import torch
from accuracy import require_close
from cases import Figures

from lightllm_kernels.penalties import apply_penalties, apply_penalties_reference
from lightllm_kernels.sample_tokens import make_random_rows, sample_tokens
from lightllm_kernels.triton_launch import triton_everywhere

# top-k, top-p, min-p
FILTERS = ((0, 1.0, 0.0), (50, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (50, 0.9, 0.01))
# two sums of probabilities or two noisy scores may be equal within rounding
_MOST_DIFFERING = 0.02


def sampling(device: torch.device, rows: int, vocab: int) -> Figures:
    """Every fifth row greedy, the others with each filter, as the CPU draws them; not inside
    `triton_everywhere`.
    """
    torch.manual_seed(0)
    logits = torch.randn(rows, vocab) * 2.5
    drawn = [row for row in range(rows) if row % 5]
    filters = [FILTERS[row % len(FILTERS)] for row in drawn]
    options = (drawn, [0.8] * len(drawn), *(list(column) for column in zip(*filters, strict=True)))
    seeds, positions = list(range(len(drawn))), [9 + row for row in drawn]
    wanted = sample_tokens(logits, make_random_rows(*options, seeds, positions, device="cpu"))
    with triton_everywhere():
        on_device = make_random_rows(*options, seeds, positions, device=device)
        got = sample_tokens(logits.to(device), on_device).cpu()
    greedy = torch.arange(rows) % 5 == 0
    if not torch.equal(got[greedy], wanted[greedy]):
        raise AssertionError("another greedy token")
    differing = int((got != wanted).sum())
    if differing > _MOST_DIFFERING * rows:
        raise AssertionError(f"{differing} of {rows} tokens are not the CPU's")
    return {"sampled_rows": rows, "differing_tokens": differing}


def penalties(device: torch.device, rows: int, vocab: int) -> Figures:
    torch.manual_seed(0)
    logits = torch.randn(rows, vocab, device=device)
    seen = torch.rand(rows + 2, vocab, device=device) < 0.3
    counts = torch.randint(-3, 4, (rows + 2, vocab), dtype=torch.int32, device=device).clamp(min=0)
    order = torch.randperm(rows, device=device)
    strengths = {
        "repetition": torch.rand(rows, device=device) + 0.8,
        "presence": torch.rand(rows, device=device) - 0.5,
        "frequency": torch.rand(rows, device=device) - 0.5,
    }
    wanted = logits.cpu()
    apply_penalties_reference(
        wanted,
        *(tensor.cpu() for tensor in (order, order + 2, seen, counts)),
        **{name: value.cpu() for name, value in strengths.items()},
    )
    with triton_everywhere():
        apply_penalties(logits, order, order + 2, seen, counts, **strengths)
    return {"relative_error": float(f"{require_close(logits.cpu(), wanted, logits.dtype):.1e}")}
