"""Speed of the engine at the shapes of LLaMA-7B and Llama-3-8B with random weights, and of
transformers in the same run.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import http_load
import torch
from arrivals import make_requests
from cases import Case, Figures, SkipError, keeping
from device_time import copy_gb_per_s
from gaps import step_gaps
from model_dirs import LLAMA_3_8B, LLAMA_7B, TINY, write_model_dir
from serving import Serving, load_turns, make_runner, serve_load

RATE = 200.0


class Bench:
    """One model's cases; its runner lives from its first case to its last."""

    def __init__(
        self, name: str, shape: dict[str, Any], device: torch.device, *, tiny: bool
    ) -> None:
        self.name, self.device, self.tiny = name, device, tiny
        self.shape = TINY if tiny else shape
        self.dtype = "float32" if tiny else "float16"
        self.folder = Path(tempfile.mkdtemp(prefix="gpu-check-"))
        self.long = 64 if tiny else 32768
        self.context = 256 if tiny else 36864
        write_model_dir(self.folder, self.shape, dtype=self.dtype, max_length=self.context)
        self._runners: dict[tuple[Any, ...], Any] = {}

    @contextmanager
    def runner(self, **options: Any):
        """The runner of these options; another one before it has been ended."""
        key = tuple(sorted(options.items()))
        if key not in self._runners:
            self.end()
            # a runner leaves no memory for the buffers of a copy
            _ = self.copy_speed
            defaults = {"dtype": self.dtype, "kv_dtype": "model", "load_format": "dummy"}
            if self.tiny:
                defaults |= {"max_total_token_num": 1024, "batch_max_tokens": 64}
                options.setdefault("running_max_req_size", 8)
            self._runners[key] = make_runner(self.folder, self.device, **defaults | options)
        yield self._runners[key]

    def end(self) -> Figures:
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return {}

    @cached_property
    def copy_speed(self) -> float:
        """Of a copy, in GB/s read and written."""
        # far beyond the caches
        num_bytes = 2**30 if self.device.type == "cuda" else 2**12
        speed = copy_gb_per_s(self.device, num_bytes=num_bytes, repeats=10)
        self.end()
        return speed

    def prompt(self, length: int, seed: int = 0) -> tuple[int, ...]:
        rng = random.Random(seed)
        return tuple(rng.randrange(3, self.shape["vocab_size"]) for _ in range(length))

    def load(self, *, count: int, **options: Any) -> Figures:
        """(a): LightLLM's published method in process."""
        with self.runner(**options) as runner:
            vocab, shrink = self.shape["vocab_size"], 64 if self.tiny else 1
            requests = make_requests(count, rate=RATE, vocab_size=vocab, shrink=shrink)
            # kernels of the shapes to come are compiled before the clock starts
            serve_load(
                Serving(runner), make_requests(16, rate=RATE, vocab_size=vocab, seed=1, shrink=64)
            )
            return {
                "kv_slots": runner.info().max_total_token_num,
                **serve_load(Serving(runner), requests),
            }

    def decode(self, batch: int, steps: int) -> Figures:
        """(b): ms per step of `batch` rows of 128 tokens and more, beside the time that the weights
        it reads take at the speed of a copy (bytes read and written).
        """
        with self.runner() as runner:
            serving = self._decoding(runner, batch, max_new_tokens=3 * steps + 40)
            before, began = len(serving.pure_decode_rows), time.perf_counter()
            context = serving.context_tokens
            for _ in range(steps):
                serving.turn()
            ms = (
                (time.perf_counter() - began) * 1e3 / max(1, len(serving.pure_decode_rows) - before)
            )
            # the mean of the steps, which each add as many tokens as there are rows
            context = (context + serving.context_tokens) / 2
            info = runner.info()
            weights = info.weight_bytes - self._embedding_bytes
            weights_ms = weights / self.copy_speed / 1e6
            read = weights + context * info.kv_bytes_per_token
            return {
                "ms_per_step": round(ms, 3),
                "weight_bytes_read": weights,
                "mean_context": round(context / batch),
                "copy_GB_per_s": round(self.copy_speed),
                "weights_ms": round(weights_ms, 3),
                "times_weights_ms": round(ms / weights_ms, 3),
                "weights_and_kv_GB_per_s": round(read / ms / 1e6),
            }

    @property
    def _embedding_bytes(self) -> int:
        """The input embedding, of which a step reads a row per token; tied to no output here."""
        elements = self.shape["vocab_size"] * self.shape["hidden_size"]
        return elements * getattr(torch, self.dtype).itemsize

    def _decoding(self, runner: Any, batch: int, *, max_new_tokens: int) -> Serving:
        """`batch` rows, a few steps into their decoding."""
        serving = Serving(runner, prefix_cache=False)
        for row in range(batch):
            serving.add(self.prompt(8 if self.tiny else 128, row), max_new_tokens=max_new_tokens)
        serving.until_all_decode(batch)
        for _ in range(8):
            serving.turn()
        return serving

    def gaps(self, batches: tuple[int, ...]) -> Figures:
        """Where the GPU waits: steps that only decode, then such that a prompt joins each."""
        turns = 2 if self.tiny else 20
        figures: Figures = {}
        with self.runner() as runner, keeping(figures):
            for batch in batches:
                serving = self._decoding(runner, batch, max_new_tokens=3 * turns + 40)
                figures[f"decode_{batch}"] = step_gaps(serving.turn, turns, self.device)

            def join_and_turn() -> None:
                prompt = self.prompt(8 if self.tiny else 128, len(serving.tokens))
                serving.add(prompt, max_new_tokens=2 * turns)
                serving.turn()

            serving = self._decoding(runner, batches[-1], max_new_tokens=4 * turns + 40)
            for _ in range(4):
                join_and_turn()
            figures["mixed"] = step_gaps(join_and_turn, turns, self.device)
        return figures

    def load_gaps(self, count: int, turns: int) -> Figures:
        """Where the GPU waits in the middle of (a), whose steps are mixed: half of the requests
        have come, and the others go on to come.
        """
        with self.runner() as runner:
            vocab, shrink = self.shape["vocab_size"], 64 if self.tiny else 1
            requests = make_requests(count, rate=RATE, vocab_size=vocab, shrink=shrink)
            serving = Serving(runner)
            loop = load_turns(serving, requests)
            while len(serving.tokens) < count // 2:
                next(loop)
            before = len(serving.pure_decode_rows)
            figures = step_gaps(lambda: next(loop, None), turns, self.device)
            mixed = turns - (len(serving.pure_decode_rows) - before)
            return {**figures, "turns": turns, "mixed_turns": mixed}

    def long_prompts(self, count: int) -> Figures:
        """(c): prompts of 32 k tokens, one after the other, and steps behind such a context."""
        with self.runner(max_req_total_len=self.context) as runner:
            times, steps = [], []
            for seed in range(count):
                serving = Serving(runner, prefix_cache=False)
                began = time.perf_counter()
                request = serving.add(self.prompt(self.long, seed), max_new_tokens=34)
                serving.until_all_decode(1)
                times.append(serving.first_token_at[request] - began)
                began, before = time.perf_counter(), len(serving.pure_decode_rows)
                serving.finish()
                steps.append(
                    (time.perf_counter() - began) / max(1, len(serving.pure_decode_rows) - before)
                )
            first = sorted(times)[len(times) // 2]
            return {
                "prompt_tokens": self.long,
                "ttft_s": round(first, 3),
                "prefill_tokens_per_s": round(self.long / first),
                "decode_ms_per_step": round(sorted(steps)[len(steps) // 2] * 1e3, 3),
            }

    def equal_memory(self, *, count: int, slots: int) -> Figures:
        """(d): the same load with a KV cache of the same bytes, in the model's dtype and int8."""
        figures: Figures = {}
        element = 4 if self.tiny else 2
        dim = self.shape["hidden_size"] // self.shape["num_attention_heads"]
        for kv_dtype in ("model", "int8"):
            factor = 1.0 if kv_dtype == "model" else element * dim / (dim + 2)
            options = {"kv_dtype": kv_dtype, "max_total_token_num": int(slots * factor)}
            with keeping(figures):
                result = self.load(count=count, **options)
            keep = (
                "kv_slots",
                "requests_per_s",
                "output_tokens_per_s",
                "mean_decode_rows",
                "preempted",
            )
            figures |= {f"{kv_dtype}_{name}": result[name] for name in keep}
        return figures

    def over_http(self, count: int) -> Figures:
        """(a) through the HTTP server, as a user would meet it."""
        if missing := http_load.missing_packages():
            raise SkipError(f"not installed: {', '.join(missing)}")
        self.end()
        return http_load.measure(self.folder, self.device, count, RATE, tiny=self.tiny)

    def transformers(self, batches: tuple[int, ...], steps: int) -> Figures:
        """The peer: generate() on static batches with its own cache, the same shapes and dtype."""
        from transformers import AutoModelForCausalLM, LlamaConfig

        self.end()
        config = LlamaConfig.from_pretrained(self.folder)
        dtype = getattr(torch, self.dtype)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        figures: Figures = {}
        for batch in batches:
            with keeping(figures):
                ms = self._generate_ms(model, batch, steps)
            figures[f"batch_{batch}_ms_per_step"] = round(ms, 3)
            figures[f"batch_{batch}_output_tokens_per_s"] = round(batch / max(ms, 1e-6) * 1e3, 1)
        del model
        self.end()
        return figures

    def _generate_ms(self, model: Any, batch: int, steps: int) -> float:
        """ms per step: `steps` tokens more, without the prompts."""
        prompts = [self.prompt(8 if self.tiny else 128, row) for row in range(batch)]
        ids = torch.tensor(prompts, device=self.device)
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
        model.generate(ids, max_new_tokens=2, **options)
        seconds = []
        for new_tokens in (1, 1 + steps):
            self._synchronize()
            began = time.perf_counter()
            model.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **options)
            self._synchronize()
            seconds.append(time.perf_counter() - began)
        return (seconds[1] - seconds[0]) / steps * 1e3

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def make_cases(device: torch.device, *, tiny: bool) -> list[Case]:
    """The most wanted first: what time does not allow is skipped."""
    seven = Bench("LLaMA-7B", LLAMA_7B, device, tiny=tiny)
    eight = Bench("Llama-3-8B", LLAMA_3_8B, device, tiny=tiny)
    steps = 3 if tiny else 64
    batches = (1, 4) if tiny else (1, 32, 256)
    many, fewer = (4, 3) if tiny else (2000, 500)
    slots = 64 if tiny else 40_000
    cases: list[tuple[Bench, str, Callable[[], Figures]]] = []
    for batch in batches:
        cases.append((seven, f"decode, batch {batch}", partial(seven.decode, batch, steps)))
    cases.append((seven, f"{many} requests at {RATE:.0f}/s", partial(seven.load, count=many)))
    # behind the others of its runner: a profiler may leave something behind
    cases.append((seven, "gaps between steps", partial(seven.gaps, batches[:2])))
    name = f"gaps in the middle of {many} requests at {RATE:.0f}/s"
    cases.append((seven, name, partial(seven.load_gaps, many, 2 if tiny else 50)))
    name = f"{many} requests at {RATE:.0f}/s over HTTP"
    cases.append((seven, name, partial(seven.over_http, many)))
    cases.append(
        (seven, "int8 KV at equal memory", partial(seven.equal_memory, count=fewer, slots=slots))
    )
    cases.append((seven, "transformers", partial(seven.transformers, batches[:2], steps)))
    cases.append((eight, "32 k-token prompts", partial(eight.long_prompts, 1 if tiny else 3)))
    if not tiny:
        # the same code as above
        for batch in batches:
            cases.append((eight, f"decode, batch {batch}", partial(eight.decode, batch, steps)))
        name = f"{many} requests at {RATE:.0f}/s"
        cases.append((eight, name, partial(eight.load, count=many)))
    return [Case(f"{bench.name}: {name}", run) for bench, name, run in _one_at_a_time(cases)]


def _one_at_a_time(
    cases: list[tuple[Bench, str, Callable[[], Figures]]],
) -> list[tuple[Bench, str, Callable[[], Figures]]]:
    """Two models do not fit: the one before is ended first."""
    benches = list({id(bench): bench for bench, _, _ in cases}.values())

    def alone(bench: Bench, run: Callable[[], Figures]) -> Figures:
        for other in benches:
            if other is not bench:
                other.end()
        return run()

    return [(bench, name, partial(alone, bench, run)) for bench, name, run in cases]
