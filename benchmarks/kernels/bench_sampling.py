"""Sampling, penalties and logprobs beside eager torch, whose filters sort the vocabulary.

    .venv/bin/python benchmarks/kernels/bench_sampling.py

Without a GPU it runs every call once at tiny shapes and prints no figure.
"""

from __future__ import annotations

from typing import Any

import torch
from device_table import DeviceTable, test_and_run

from lightllm_kernels.logprobs import token_logprobs, token_logprobs_reference, top_logprobs
from lightllm_kernels.penalties import add_logit_bias, apply_penalties, count_tokens
from lightllm_kernels.sample_tokens import make_random_rows, sample_tokens

# rows, vocabulary: LLaMA and LLaMA-3
SHAPES = ((1, 32000), (256, 32000), (1, 128256), (256, 128256))
# top-k, top-p, min-p
FILTERS = {
    "no filter": (0, 1.0, 0.0),
    "top-k 50": (50, 1.0, 0.0),
    "top-p 0.9": (0, 0.9, 0.0),
    "top-k 50, top-p 0.9": (50, 0.9, 0.0),
    "min-p 0.05": (0, 1.0, 0.05),
}
TEMPERATURE = 0.8


def run(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Rows of name, ms of ours and torch, GB/s over one reading, share of the copy bandwidth."""
    table = DeviceTable(device, tiny)
    for rows, vocab in ((2, 300),) if tiny else SHAPES:
        logits = torch.randn(rows, vocab, device=device) * 2.5
        _add_sampling(table, logits)
        _add_penalties(table, logits)
        _add_logprobs(table, logits)
    return table.rows


def sort_and_draw(logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """As engines in plain torch do it: sort, mask, softmax, draw."""
    scores = logits / TEMPERATURE
    if top_k or top_p < 1:
        scores, order = scores.sort(dim=-1, descending=True)
        if top_k:
            scores[:, top_k:] = float("-inf")
        probs = scores.softmax(-1)
        if top_p < 1:
            probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)
        return order.gather(1, _draw(probs)).squeeze(1)
    probs = scores.softmax(-1)
    if min_p:
        probs = probs.masked_fill(probs < min_p * probs.amax(-1, keepdim=True), 0.0)
    return _draw(probs).squeeze(1)


def _draw(probs: torch.Tensor) -> torch.Tensor:
    """As multinomial does, without its look at the values, which waits for the device."""
    return (probs / torch.empty_like(probs).exponential_()).argmax(-1, keepdim=True)


def _add_sampling(table: DeviceTable, logits: torch.Tensor) -> None:
    count, vocab = logits.shape
    label = f"{count} × {vocab}"
    table.add(
        f"greedy {label}",
        logits.nbytes,
        lambda: sample_tokens(logits, None),
        {"torch": lambda: logits.argmax(-1)},
    )
    for name, filters in FILTERS.items():
        rows = make_random_rows(
            range(count),
            [TEMPERATURE] * count,
            *([value] * count for value in filters),
            range(count),
            [5] * count,
            device=logits.device,
        )
        table.add(
            f"{name} {label}",
            logits.nbytes,
            lambda rows=rows: sample_tokens(logits, rows),
            {"torch": lambda filters=filters: sort_and_draw(logits, *filters)},
        )


def _add_penalties(table: DeviceTable, logits: torch.Tensor) -> None:
    count, vocab = logits.shape
    device = logits.device
    rows = torch.arange(count, device=device)
    ids = torch.randint(0, vocab, (count,), device=device)
    seen = torch.zeros(count, vocab, dtype=torch.bool, device=device)
    counts = torch.zeros(count, vocab, dtype=torch.int32, device=device)
    for _ in range(200):
        seen[rows, torch.randint(0, vocab, (count,), device=device)] = True
        counts[rows, torch.randint(0, vocab, (count,), device=device)] += 1
    one, some = torch.ones(count, device=device), torch.full((count,), 0.1, device=device)

    def in_torch() -> None:
        either = seen | (counts > 0)
        factor = torch.where(logits > 0, 1 / one.unsqueeze(1), one.unsqueeze(1))
        logits.copy_(torch.where(either, logits * factor, logits))
        logits.sub_(counts * some.unsqueeze(1)).sub_((counts > 0) * some.unsqueeze(1))

    table.add(
        f"apply_penalties {count} × {vocab}",
        seen.nbytes + counts.nbytes,
        lambda: apply_penalties(
            logits, rows, rows, seen, counts, repetition=one, presence=some, frequency=some
        ),
        {"torch": in_torch},
    )
    table.add(
        f"count_tokens {count}",
        count * 24,
        lambda: count_tokens(counts, rows, ids),
        {"torch": lambda: counts.index_put_((rows, ids), counts.new_ones(()), accumulate=True)},
    )
    table.add(
        f"add_logit_bias {count}",
        count * 28,
        lambda: add_logit_bias(logits, rows, ids, some),
        {"torch": lambda: logits.index_put_((rows, ids), some, accumulate=True)},
    )


def _add_logprobs(table: DeviceTable, logits: torch.Tensor) -> None:
    ids = logits.argmax(-1)
    label = f"{logits.shape[0]} × {logits.shape[1]}"
    table.add(
        f"token_logprobs {label}",
        logits.nbytes,
        lambda: token_logprobs(logits, ids),
        {
            "torch": lambda: logits.gather(1, ids[:, None]).squeeze(1) - logits.logsumexp(1),
            "reference": lambda: token_logprobs_reference(logits, ids),
        },
    )
    table.add(
        f"top_logprobs 5 {label}",
        logits.nbytes,
        lambda: top_logprobs(logits, 5),
        {"torch": lambda: logits.log_softmax(-1).topk(5)},
    )


if __name__ == "__main__":
    test_and_run("test_triton_sampling.py", run)
