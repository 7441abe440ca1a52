"""What the engine promises, on the demo model in float32: equal tokens however the work is done."""

from __future__ import annotations

import random
import tempfile
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from cases import Case, Figures
from model_dirs import TINY, write_model_dir
from serving import Serving, make_runner

from lightllm_kernels.triton_launch import triton_everywhere
from lightllm_server.router import admission

DEMO_MODEL = Path(__file__).parents[2] / "examples" / "demo-model"
# where the two best logits are closer than this, rounding may decide
MARGIN = 1e-3
# and where a rounding may also have moved a stored int8 by one
INT8_MARGIN = 1e-2
WARM_STEPS = 10


class EngineCases:
    def __init__(self, device: torch.device, *, tiny: bool) -> None:
        self.device, self.tiny = device, tiny
        self.outputs = 6 if tiny else 64
        rng = random.Random(0)
        lengths = (3, 9, 20) if tiny else (1, 7, 40, 200, 23, 23, 64, 5)
        self.prompts = [tuple(rng.randrange(3, 400) for _ in range(n)) for n in lengths]

    def _runner(self, **options: Any) -> Any:
        options = {"dtype": "float32", "kv_dtype": "model", "max_total_token_num": 4096, **options}
        return make_runner(
            DEMO_MODEL, self.device, running_max_req_size=32, batch_max_tokens=128, **options
        )

    @cached_property
    def runner(self) -> Any:
        return self._runner()

    @cached_property
    def greedy(self) -> Serving:
        return self._greedy(self.runner)

    def _greedy(self, runner: Any) -> Serving:
        serving = Serving(runner)
        serving.generate(self.prompts, max_new_tokens=self.outputs)
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
                if values[0] - values[1] < MARGIN:
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
        return same_but_for_ties(
            self._greedy(self._runner(disable_cudagraph=True)), self.greedy, MARGIN
        )

    def same(self, serving: Serving, wanted: list[list[int]], **sampling: Any) -> None:
        got = serving.generate(self.prompts, max_new_tokens=self.outputs, **sampling)
        if got != wanted:
            differing = [i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b]
            raise AssertionError(f"other tokens for the prompts {differing}")

    def graphs_off_sampled(self) -> Figures:
        sampling = {
            "temperature": 0.9,
            "top_k": 50,
            "top_p": 0.95,
            "seed": 3,
            "repetition_penalty": 1.1,
        }
        wanted = Serving(self.runner).generate(
            self.prompts, max_new_tokens=self.outputs, **sampling
        )
        self.same(Serving(self._runner(disable_cudagraph=True)), wanted, **sampling)
        return {}

    def prefix_hit(self) -> Figures:
        serving = Serving(self.runner)
        for _ in range(2):
            self.same(serving, self.wanted)
        if not serving.scheduler.prefix_hit_tokens_total:
            raise AssertionError("no prefix was hit")
        return {"hit_tokens": serving.scheduler.prefix_hit_tokens_total}

    def preemption(self) -> Figures:
        longest = max(map(len, self.prompts)) + self.outputs
        prompts = sum(map(len, self.prompts))
        # any one fits; a far too hopeful estimate admits all, whose outputs soon do not
        slots = max(longest + 2, prompts + self.outputs * len(self.prompts) // 4)
        policy = admission.EfficientAdmission(expected_new_tokens=1)
        # with `ignore_eos` the lengths would be known
        sampling = {"ignore_eos": False, "min_new_tokens": self.outputs}
        wanted = Serving(self.runner).generate(
            self.prompts, max_new_tokens=self.outputs, **sampling
        )
        serving = Serving(self.runner, num_slots=slots, policy=policy, prefix_cache=False)
        self.same(serving, wanted, **sampling)
        if not serving.scheduler.preempted_total:
            raise AssertionError("nothing was preempted")
        return {"preempted": serving.scheduler.preempted_total}

    def int8_kv(self) -> Figures:
        on = self._greedy(self._runner(kv_dtype="int8"))
        off = self._greedy(self._runner(kv_dtype="int8", disable_cudagraph=True))
        figures = same_but_for_ties(off, on, INT8_MARGIN)
        pairs = zip((choices[0] for choices in on.tokens.values()), self.wanted, strict=True)
        equal = sum(a == b for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
        share = equal / (self.outputs * len(self.prompts))
        if share < 0.3:
            raise AssertionError(f"{share:.0%} of the tokens are those of the model's own KV dtype")
        return {**figures, "share_of_equal_tokens": round(share, 3)}

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

    def half_precision(self) -> Figures:
        """The model runs in both half precisions; how long tokens stay those of float32."""
        figures = {}
        for dtype in ("bfloat16", "float16"):
            ids = Serving(self._runner(dtype=dtype)).generate(
                self.prompts, max_new_tokens=self.outputs
            )
            equal = sum(
                a == b
                for x, y in zip(ids, self.wanted, strict=True)
                for a, b in zip(x, y, strict=True)
            )
            figures[dtype] = round(equal / (self.outputs * len(self.prompts)), 3)
            if figures[dtype] < 0.3:
                raise AssertionError(
                    f"{dtype}: {figures[dtype]:.0%} of the tokens are those of float32"
                )
        return figures


def same_but_for_ties(got: Serving, wanted: Serving, margin: float) -> Figures:
    """Fails unless the greedy tokens are the same up to one whose logprob in both is within
    `margin`: there another order of additions chose between two best tokens.
    """
    ties = 0
    for request, choices in wanted.tokens.items():
        pairs = zip(got.tokens[request][0], choices[0], strict=True)
        index = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        if index is None:
            continue
        ties += 1
        apart = abs(got.logprobs[request][0][index] - wanted.logprobs[request][0][index])
        if not apart <= margin:
            raise AssertionError(f"other tokens for prompt {request} from {index} on: {apart:.1e}")
    return {"prompts_that_ended_in_a_tie": ties}


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
    engine = EngineCases(device, tiny=tiny)
    cases = [
        Case("greedy tokens are transformers', float32", engine.transformers_greedy),
        Case("graphs off: the same greedy tokens", engine.graphs_off),
        Case("graphs off: the same sampled tokens", engine.graphs_off_sampled),
        Case("prefix hit: the same tokens", engine.prefix_hit),
        Case("preemption: the same tokens", engine.preemption),
        Case("int8 KV: graphs on and off equal", engine.int8_kv),
        Case("n samples of one prompt", engine.n_samples),
        Case("steady decode waits for nothing", engine.steady_decode),
        Case("bfloat16 and float16", engine.half_precision),
    ]
    if tiny:
        cases.append(Case("replays over interpreted kernels", partial(triton_replays)))
    return cases
