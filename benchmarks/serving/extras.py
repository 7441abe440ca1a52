"""The side measurements: null model, shared prefix, time to ready, memory, int8 and logits."""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import client
from server import Server
from workload import CONCURRENCY, FIRST_PLAIN_ID

NULL_REQUESTS = 400
NULL_OUTPUT_LEN = 16
PREFIX_LEN = 1500
PREFIX_PAIRS = 5
LOGITS_PROMPTS = 8
LOGITS_PROMPT_LEN = 256
START_REPEATS = 3


def null_model(demo_model: Path, threads: int) -> dict[str, float]:
    """Requests per second with no forward pass: HTTP, tokenizing, routing, detokenizing."""
    prompt = "What is the Efficient Router?"
    body = {
        "model": "null",
        "prompt": prompt,
        "max_tokens": NULL_OUTPUT_LEN,
        "ignore_eos": True,
    }

    async def measure(port: int, *, stream: bool, count: int) -> float:
        pending = iter(range(count))

        async def worker() -> None:
            for _ in pending:
                if stream:
                    await client.stream_completion(port, prompt, NULL_OUTPUT_LEN, "null")
                else:
                    await client.post(port, "/v1/completions", body)

        start = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
        return count / (time.perf_counter() - start)

    options = ("--null-model", "--served-model-name", "null")
    results = {}
    with Server(demo_model, *options, threads=threads) as server:
        for name, stream in (("whole answers", False), ("streams", True)):
            asyncio.run(measure(server.port, stream=stream, count=CONCURRENCY))
            results[name] = asyncio.run(measure(server.port, stream=stream, count=NULL_REQUESTS))
    return results


def shared_prefix(server: Server, model: str, vocab_size: int) -> dict[str, float]:
    """Median TTFT in ms of a prompt with a new 1500-token prefix, then of one that shares it."""
    rng = random.Random(1)

    def ids(count: int) -> list[int]:
        return [rng.randrange(FIRST_PLAIN_ID, vocab_size) for _ in range(count)]

    async def ttft(prompt: list[int]) -> float:
        return (await client.stream_completion(server.port, prompt, 2, model))[0]

    cold, shared = [], []
    for _ in range(PREFIX_PAIRS):
        prefix = ids(PREFIX_LEN)
        cold.append(asyncio.run(ttft(prefix + ids(16))))
        shared.append(asyncio.run(ttft(prefix + ids(16))))
    return {
        "ttft_new_prefix_ms": 1000 * statistics.median(cold),
        "ttft_shared_prefix_ms": 1000 * statistics.median(shared),
    }


def time_to_ready(demo_model: Path, threads: int) -> dict[str, float]:
    """Median seconds of `import torch` and of the demo model's start, taken in turn."""
    imports, starts = [], []
    for _ in range(START_REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        imports.append(time.perf_counter() - start)
        with Server(demo_model, threads=threads) as server:
            starts.append(server.seconds_to_ready)
    return {
        "import_torch_s": statistics.median(imports),
        "ready_s": statistics.median(starts),
        "difference_s": statistics.median(starts) - statistics.median(imports),
    }


def prompt_logprobs(port: int, prompt: list[int], model: str) -> tuple[list[float], list[str]]:
    """Logprob of every prompt token but the first, and the most likely token in its place."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0,
        "echo": True,
        "logprobs": 1,
    }
    answer = asyncio.run(client.post(port, "/v1/completions", body))
    logprobs: dict[str, Any] = answer["choices"][0]["logprobs"]
    tops = [max(top, key=lambda token: top[token]) for top in logprobs["top_logprobs"][1:]]
    return logprobs["token_logprobs"][1 : len(prompt)], tops[: len(prompt) - 1]


def compare_logits(
    plain: Server, int8: Server, prompts: list[list[int]], model: str
) -> dict[str, float]:
    """Largest and mean difference of the prompts' logprobs, and agreement of the best token."""
    differences, agreements = [], []
    for prompt in prompts:
        plain_logprobs, plain_tops = prompt_logprobs(plain.port, prompt, model)
        int8_logprobs, int8_tops = prompt_logprobs(int8.port, prompt, model)
        pairs = zip(plain_logprobs, int8_logprobs, strict=True)
        differences += [abs(one - other) for one, other in pairs]
        agreements += [one == other for one, other in zip(plain_tops, int8_tops, strict=True)]
    return {
        "mean_abs_logprob_difference": statistics.mean(differences),
        "max_abs_logprob_difference": max(differences),
        "top1_agreement": statistics.mean(agreements),
        "tokens": len(differences),
    }


def demo_logits(demo_model: Path, threads: int) -> dict[str, float]:
    """`compare_logits` on the trained demo model, over its own configuration's README-like text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    corpus = Path(__file__).parents[2] / "scripts" / "demo_model" / "corpus.md"
    token_ids = tokenizer.encode(corpus.read_text(encoding="utf-8")).ids
    prompts = [
        token_ids[start : start + LOGITS_PROMPT_LEN]
        for start in range(0, LOGITS_PROMPTS * LOGITS_PROMPT_LEN, LOGITS_PROMPT_LEN)
    ]
    name = ("--served-model-name", "demo")
    with (
        Server(demo_model, *name, threads=threads) as plain,
        Server(demo_model, *name, "--weight-dtype", "int8", threads=threads) as int8,
    ):
        return compare_logits(plain, int8, prompts, "demo")
