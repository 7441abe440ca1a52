"""What the engine promises, on the demo model: equal tokens however the work is done. In float32,
and in both half precisions, whose attention takes the shipped table of block sizes.
"""

from __future__ import annotations

import random
import tempfile
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from agreement import agree
from cases import Case, Figures
from model_dirs import TINY, write_model_dir
from serving import Serving, make_runner

from lightllm_kernels.triton_launch import triton_everywhere
from lightllm_server.router import admission

DEMO_MODEL = Path(__file__).parents[2] / "examples" / "demo-model"
# what another order of additions changes in a logprob: about three times what the CPU shows
MARGIN = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.02}
# and an int8 KV pool beside the model's own dtype
INT8_ERROR = 0.1
WARM_STEPS = 10


class EngineCases:
    """One dtype's cases."""

    def __init__(self, device: torch.device, dtype: str, *, tiny: bool) -> None:
        self.device, self.dtype, self.tiny = device, dtype, tiny
        self.margin = MARGIN[dtype]
        self.outputs = 6 if tiny else 64
        rng = random.Random(0)
        lengths = (3, 9, 20) if tiny else (1, 7, 40, 200, 23, 23, 64, 5)
        self.prompts = [tuple(rng.randrange(3, 400) for _ in range(n)) for n in lengths]

    def _runner(self, **options: Any) -> Any:
        options = {"dtype": self.dtype, "kv_dtype": "model", "max_total_token_num": 4096, **options}
        return make_runner(
            DEMO_MODEL, self.device, running_max_req_size=32, batch_max_tokens=128, **options
        )

    @cached_property
    def runner(self) -> Any:
        return self._runner()

    @cached_property
    def runner_without_graphs(self) -> Any:
        return self._runner(disable_cudagraph=True)

    @cached_property
    def greedy(self) -> Serving:
        return self._greedy(self.runner)

    def _greedy(self, runner: Any) -> Serving:
        return self._generate(Serving(runner))

    def _generate(self, serving: Serving, **sampling: Any) -> Serving:
        serving.generate(self.prompts, max_new_tokens=self.outputs, **sampling)
        return serving

    @property
    def wanted(self) -> list[list[int]]:
        return [choices[0] for choices in self.greedy.tokens.values()]

    def transformers_greedy(self) -> Figures:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32)
        model = model.to(self.device).eval()
        certain_tokens = 0
        for prompt, ids in zip(self.prompts, self.wanted, strict=True):
            sequence = torch.tensor([[*prompt, *ids]], device=self.device)
            with torch.inference_mode():
                logits = model(sequence).logits[0, len(prompt) - 1 : -1].float()
            best = logits.topk(2)
            for ours, theirs, values in zip(
                ids, best.indices[:, 0].tolist(), best.values.tolist(), strict=True
            ):
                if values[0] - values[1] < self.margin:
                    break
                if ours != theirs:
                    raise AssertionError(
                        f"{ours} instead of {theirs} after a prompt of {len(prompt)}"
                    )
                certain_tokens += 1
        if certain_tokens < self.outputs * len(self.prompts) // 2:
            raise AssertionError(
                f"only {certain_tokens} tokens had a margin: this proves too little"
            )
        return {"tokens": certain_tokens}

    def graphs_off(self) -> Figures:
        return agree(self._greedy(self.runner_without_graphs), self.greedy, self.margin)

    def graphs_off_sampled(self) -> Figures:
        sampling = {
            "temperature": 0.9,
            "top_k": 50,
            "top_p": 0.95,
            "seed": 3,
            "repetition_penalty": 1.1,
        }
        wanted, got = (
            self._generate(Serving(runner), **sampling).tokens
            for runner in (self.runner, self.runner_without_graphs)
        )
        if got != wanted:
            differing = [request for request in wanted if got[request] != wanted[request]]
            raise AssertionError(f"other tokens for the prompts {differing}")
        return {}

    def prefix_hit(self) -> Figures:
        serving = self._greedy(self.runner)
        figures = agree(self._generate(serving), self.greedy, self.margin)
        hits = serving.scheduler.prefix_hit_tokens_total
        if not hits:
            raise AssertionError("no prefix was hit")
        return {**figures, "hit_tokens": hits}

    def preemption(self) -> Figures:
        longest = max(map(len, self.prompts)) + self.outputs
        prompts = sum(map(len, self.prompts))
        # any one fits; a far too hopeful estimate admits all, whose outputs soon do not
        slots = max(longest + 2, prompts + self.outputs * len(self.prompts) // 4)
        policy = admission.EfficientAdmission(expected_new_tokens=1)
        # with `ignore_eos` the lengths would be known
        sampling = {"ignore_eos": False, "min_new_tokens": self.outputs}
        wanted = self._generate(Serving(self.runner), **sampling)
        short = Serving(self.runner, num_slots=slots, policy=policy, prefix_cache=False)
        figures = agree(self._generate(short, **sampling), wanted, self.margin)
        preempted = short.scheduler.preempted_total
        if not preempted:
            raise AssertionError("nothing was preempted")
        return {**figures, "preempted": preempted}

    def int8_kv(self) -> Figures:
        """Graphs on and off agree, and both with the model's own KV dtype within a bound."""
        on = self._greedy(self._runner(kv_dtype="int8"))
        off = self._greedy(self._runner(kv_dtype="int8", disable_cudagraph=True))
        # a rounding may have moved a stored number by one
        agree(off, on, 2 * self.margin)
        return agree(on, self.greedy, self.margin + INT8_ERROR)

    def n_samples(self) -> Figures:
        sampling = {"max_new_tokens": self.outputs, "temperature": 1.0, "seed": 5}
        serving = Serving(self.runner)
        request = serving.add(self.prompts[1], n=4, **sampling)
        serving.finish()
        choices = [tuple(serving.tokens[request][choice]) for choice in range(4)]
        alone = Serving(self.runner).generate([self.prompts[1]], **sampling)[0]
        if choices[0] != tuple(alone) or len(set(choices)) == 1:
            raise AssertionError(f"choices {choices}, alone {alone}")
        return {}

    def steady_decode(self) -> Figures:
        """100 steps during which torch refuses to wait for the device."""
        steps = 3 if self.tiny else 100
        for sampling in ({}, {"temperature": 0.8, "top_p": 0.9, "frequency_penalty": 0.1}):
            serving = Serving(self.runner)
            for prompt in self.prompts:
                serving.add(prompt, max_new_tokens=steps + 3 * WARM_STEPS, **sampling)
            serving.until_all_decode(len(self.prompts))
            for _ in range(WARM_STEPS):
                serving.turn()
            if self.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(steps):
                    serving.turn()
            finally:
                if self.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            serving.finish()
        return {"steps": 2 * steps}

    def agrees_with(self, other: EngineCases) -> Figures:
        return agree(self.greedy, other.greedy, self.margin)


def triton_replays() -> Figures:
    """A dry run's only look at the engine over Triton kernels: replays equal eager steps."""
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder, triton_everywhere():
        model_dir = write_model_dir(Path(folder), TINY, dtype="float32", max_length=256)
        options = {"load_format": "dummy", "running_max_req_size": 2, "batch_max_tokens": 16,
                   "dtype": "float32", "max_total_token_num": 64}  # fmt: skip
        tokens = []
        for disable in (True, False):
            runner = make_runner(
                model_dir, device, disable_cudagraph=disable, graph_max_batch_size=2, **options
            )
            tokens.append(Serving(runner).generate([(5, 6, 7), (8,)], max_new_tokens=3))
            runner.close()
    if tokens[0] != tokens[1]:
        raise AssertionError(f"eager {tokens[0]}, replayed {tokens[1]}")
    return {}


def make_cases(device: torch.device, *, tiny: bool) -> list[Case]:
    exact, bfloat16, float16 = (EngineCases(device, dtype, tiny=tiny) for dtype in MARGIN)
    cases = [
        Case("greedy tokens are transformers', float32", exact.transformers_greedy),
        # sampling works in float32 in any model, and random tokens know no ties
        Case("graphs off: the same sampled tokens, float32", exact.graphs_off_sampled),
        Case("n samples of one prompt, float32", exact.n_samples),
    ]
    for engine in (bfloat16, float16, exact):
        promises = {
            "graphs off: the same greedy tokens": engine.graphs_off,
            "prefix hit: the same tokens": engine.prefix_hit,
            "preemption: the same tokens": engine.preemption,
            "int8 KV: graphs on and off, near the model's own dtype": engine.int8_kv,
            "steady decode waits for nothing": engine.steady_decode,
        }
        if engine is not exact:
            promises["the tokens of float32"] = partial(engine.agrees_with, exact)
        cases += [Case(f"{name}, {engine.dtype}", run) for name, run in promises.items()]
    if tiny:
        cases.append(Case("replays over interpreted kernels", triton_replays))
    return cases
