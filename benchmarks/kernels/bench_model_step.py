"""Time of one engine step of the benchmark's 125M LLaMA, without router, HTTP or scheduling.

    .venv/bin/python benchmarks/kernels/bench_model_step.py [--weight-dtype int8] [--profile]

Prints per step the best and the median of many, in ms, the CPU time of the best, and tokens/s.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lightllm_kernels.attention_batch import make_decode_batch, make_prefill_batch
from lightllm_kernels.workspace import Workspace
from lightllm_server.layers.attention import AttentionState
from lightllm_server.layers.parameter import WeightOptions
from lightllm_server.layers.tensor_parallel import SingleRank
from lightllm_server.models.config import ModelConfig, RopeConfig
from lightllm_server.models.llama import LlamaForCausalLM
from lightllm_server.models.registry import expected_tensors

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    family="llama",
    vocab_size=32000,
    hidden_size=768,
    intermediate_size=2048,
    num_layers=12,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope=RopeConfig(rotary_dim=64),
    max_length=2048,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    tie_word_embeddings=False,
    dtype="float32",
    eos_ids=(2,),
)
NUM_SLOTS, NUM_ROWS = 8192, 16


@dataclass
class RandomTensor:
    """A checkpoint tensor of normal values."""

    shape: tuple[int, ...]

    def get_shape(self) -> Sequence[int]:
        return self.shape

    def __getitem__(self, index: tuple[slice, ...]) -> torch.Tensor:
        tensor = torch.randn(self.shape)[index]
        return tensor.mul_(0.02) if len(self.shape) > 1 else tensor.mul_(0.1).add_(1)


class Bench:
    """A model with its pool and request table."""

    def __init__(self, dtype: torch.dtype, *, weights: str, int8_kv: bool) -> None:
        options = WeightOptions(
            dtype=dtype,
            device=torch.device("cpu"),
            int8=weights == "int8",
            float16=weights == "float16",
        )
        self.dtype, self.int8_kv = dtype, int8_kv
        self.model = LlamaForCausalLM(CONFIG, max_length=2048, tp=SingleRank(), options=options)
        shapes = expected_tensors(CONFIG)
        for name, loader in self.model.loaders().items():
            loader(RandomTensor(shapes[name]))
        heads, dim, layers = 2 * CONFIG.num_kv_heads, CONFIG.head_dim, CONFIG.num_layers
        pool_dtype = torch.int8 if int8_kv else dtype
        self.kv = [torch.zeros(NUM_SLOTS + 1, heads, dim, dtype=pool_dtype) for _ in range(layers)]
        self.scales = [torch.ones(NUM_SLOTS + 1, heads).half() for _ in range(layers)]
        # slots of a long-running server: in no order
        self.req_to_slots = torch.randperm(NUM_SLOTS, dtype=torch.int32).view(NUM_ROWS, -1)
        self.workspace = Workspace()

    def step(self, chunks: list[tuple[int, int, int]], decode: list[tuple[int, int]]) -> None:
        """chunks: (row, start, length); decode: (row, length with the current token)."""
        rows = [c[0] for c in chunks for _ in range(c[2])] + [d[0] for d in decode]
        positions = [p for c in chunks for p in range(c[1], c[1] + c[2])]
        positions += [d[1] - 1 for d in decode]
        table = self.req_to_slots
        state = AttentionState(
            positions=torch.tensor(positions),
            slots=table[torch.tensor(rows), torch.tensor(positions)].long(),
            kv=self.kv,
            kv_scales=self.scales if self.int8_kv else None,
            req_to_slots=table,
            prefill=make_prefill_batch(
                table, *map(list, zip(*chunks, strict=True)), dtype=self.dtype
            )
            if chunks
            else None,
            decode=make_decode_batch(
                table, *map(list, zip(*decode, strict=True)), padding_slot=NUM_SLOTS
            )
            if decode
            else None,
            workspace=self.workspace,
        )
        ids = torch.randint(0, CONFIG.vocab_size, (len(positions),))
        hidden = self.model.forward(ids, state, lambda: None)
        ends, last = [], -1
        for chunk in chunks:
            last += chunk[2]
            ends.append(last)
        ends += range(last + 1, last + 1 + len(decode))
        self.model.logits(hidden.index_select(0, torch.tensor(ends))).argmax(-1)


def measure(step: Callable[[], None], seconds: float) -> tuple[float, float, float]:
    """Best and median ms, and the least CPU ms of all threads."""
    for _ in range(3):
        step()
    times, cpu_times = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start, cpu_start = time.perf_counter(), time.process_time()
        step()
        times.append((time.perf_counter() - start) * 1e3)
        cpu_times.append((time.process_time() - cpu_start) * 1e3)
    return min(times), sorted(times)[len(times) // 2], min(cpu_times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--weight-dtype", default="auto", choices=["auto", "float16", "int8"])
    parser.add_argument("--kv-dtype", default="auto", choices=["auto", "int8"])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = random.Random(0)
    with torch.inference_mode():
        bench = Bench(
            getattr(torch, args.dtype),
            weights=args.weight_dtype,
            int8_kv=args.kv_dtype == "int8",
        )
        rows = [(row, rng.randint(80, 330)) for row in range(16)]
        steps = {
            "decode, 16 rows of 80-330 tokens": ([], rows),
            "decode, 1 row of 200 tokens": ([], [(0, 200)]),
            "prefill, 512 tokens in 3 prompts": ([(0, 0, 180), (1, 0, 256), (2, 0, 76)], []),
            "prefill, 256 tokens after 200": ([(3, 200, 256)], []),
            "mixed, 128 tokens and 15 rows": ([(15, 0, 128)], rows[:15]),
        }
        print(f"{args.dtype}, weights {args.weight_dtype}, KV {args.kv_dtype}, "
              f"{torch.get_num_threads()} threads")  # fmt: skip
        for name, (chunks, decode) in steps.items():
            best, median, cpu = measure(lambda c=chunks, d=decode: bench.step(c, d), args.seconds)
            tokens = len(decode) + sum(c[2] for c in chunks)
            print(f"{name:36s} best {best:8.2f} ms  median {median:8.2f} ms  CPU {cpu:8.2f} ms  "
                  f"{tokens / median * 1e3:8.1f} tokens/s", flush=True)  # fmt: skip
        if args.profile:
            with torch.profiler.profile() as profile:
                for _ in range(10):
                    bench.step([], rows)
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=22,
                                               max_name_column_width=50))  # fmt: skip


if __name__ == "__main__":
    main()
