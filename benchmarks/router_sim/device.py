"""How long a step takes on a GPU: a roofline over the tokens computed and the KV cache read.

Lives here: the arithmetic and the devices' figures. A model of a device, not a measurement of one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from lightllm_server.router.step_plan import StepPlan

__all__ = ["LLAMA_3_8B", "LLAMA_7B", "Device"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """A model on a GPU.

    slots: KV slots, one per token. parameters: weights of the linear layers and the LM head.
    weight_bytes, kv_bytes: of all weights, and of one token in all layers. attention_width: query
    heads × head_dim × layers.
    bandwidth: bytes/s reached. flops: per second, reached. overhead_s: of each step, whatever is in
    it.
    """

    name: str
    slots: int
    parameters: float
    weight_bytes: float
    kv_bytes: float
    attention_width: float
    bandwidth: float = 0.85 * 3.35e12
    flops: float = 0.6 * 989e12
    overhead_s: float = 1.5e-3

    def step_s(self, plan: StepPlan) -> float:
        """Linear layers: weights read or tokens computed, whichever is slower. Attention: the KV
        that the rows read, and the products of the prefill chunks."""
        starts = plan.chunk_starts.astype(np.int64)
        counts = plan.chunk_lens.astype(np.int64)
        read = int(plan.decode_positions.sum()) + int((starts + counts).sum())
        # a query meets the keys before it: two products, two operations each
        pairs = float((counts * (starts + counts / 2)).sum())
        linear = max(
            self.weight_bytes / self.bandwidth, 2 * self.parameters * plan.num_tokens / self.flops
        )
        attention = read * self.kv_bytes / self.bandwidth
        return self.overhead_s + linear + attention + 4 * self.attention_width * pairs / self.flops

    def figures(self) -> dict[str, float | str]:
        return asdict(self)


# 80 GB: 90 % less the weights and 2 GB of activations, / bytes per token
LLAMA_7B = Device(
    name="LLaMA-7B, fp16, one H100 (80 GB)",
    slots=107_000,
    parameters=6.6e9,
    weight_bytes=13.5e9,
    kv_bytes=2 * 32 * 4096 * 2,
    attention_width=32 * 4096,
)
LLAMA_3_8B = Device(
    name="LLaMA-3-8B, bf16, one H100 (80 GB)",
    slots=410_000,
    parameters=7.5e9,
    weight_bytes=16.1e9,
    kv_bytes=2 * 32 * 1024 * 2,
    attention_width=32 * 4096,
)
