"""Random checkpoints of many dialects, beside transformers' model of the same weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

__all__ = ["CASES", "MARGIN", "OracleCase", "greedy", "logits", "write_oracle"]

# where the two best logits are closer than this, rounding may decide
MARGIN = 1e-3
_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True, kw_only=True)
class OracleCase:
    """config: beside `_SMALL`; rope: parameters but theta; generation: generation_config.json."""

    family: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
    theta: float = 10000.0
    old_dialect: bool = False
    dtype: torch.dtype = torch.float32
    shards: int = 1
    generation: dict[str, Any] | None = None


CASES = {
    "new dialect, GQA": OracleCase(),
    "old dialect, theta 5e5": OracleCase(old_dialect=True, theta=5e5),
    "MHA": OracleCase(config={"num_key_value_heads": 4}),
    "MQA": OracleCase(config={"num_key_value_heads": 1}),
    "12 heads, 4 KV heads": OracleCase(
        config={"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 4}
    ),
    "tied": OracleCase(config={"tie_word_embeddings": True}),
    "attention and MLP bias": OracleCase(config={"attention_bias": True, "mlp_bias": True}),
    "linear rope, old": OracleCase(rope={"rope_type": "linear", "factor": 4.0}, old_dialect=True),
    "linear rope": OracleCase(rope={"rope_type": "linear", "factor": 2.5}),
    "llama3 rope, old": OracleCase(rope=_LLAMA3, old_dialect=True, theta=5e5),
    "llama3 rope": OracleCase(rope=_LLAMA3),
    "dynamic rope": OracleCase(rope={"rope_type": "dynamic", "factor": 2.0}, old_dialect=True),
    "3 shards": OracleCase(shards=3),
    "bf16 file": OracleCase(dtype=torch.bfloat16),
    "fp16 file, old": OracleCase(dtype=torch.float16, old_dialect=True),
    "explicit head_dim": OracleCase(config={"head_dim": 24}),
    "several eos": OracleCase(
        config={"eos_token_id": [2, 3]}, generation={"eos_token_id": [5, 2, 7]}
    ),
    "mistral, window": OracleCase(family="mistral", config={"sliding_window": 128}),
    "qwen2": OracleCase(family="qwen2", config={"tie_word_embeddings": True}, theta=1e6),
}


def write_oracle(path: Path, case: OracleCase, *, seed: int = 0) -> PreTrainedModel:
    """Write the case's checkpoint into `path` and return transformers' float32 model of it."""
    path.mkdir(parents=True, exist_ok=True)
    config_class, model_class = _CLASSES[case.family]
    rope = {**case.rope, "rope_theta": case.theta}
    torch.manual_seed(seed)
    config = config_class(**{**_SMALL, **case.config}, rope_parameters=rope)
    model = model_class(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            # transformers starts biases at 0 and norms at 1, which would hide mistakes
            parameter.data += 0.2 * torch.randn_like(parameter)
        parameter.data = parameter.data.to(case.dtype).float()
    fields = config.to_dict() | {"architectures": [model_class.__name__]}
    name = str(case.dtype).removeprefix("torch.")
    fields["dtype"] = name
    if case.old_dialect:
        del fields["rope_parameters"], fields["dtype"]
        scaling = {key.replace("rope_type", "type"): value for key, value in case.rope.items()}
        fields |= {"rope_theta": case.theta, "torch_dtype": name}
        fields["rope_scaling"] = None if scaling == {"type": "default"} else scaling
    (path / "config.json").write_text(json.dumps(fields))
    if case.generation is not None:
        (path / "generation_config.json").write_text(json.dumps(case.generation))
    _save(path, model, case)
    return model


def _save(path: Path, model: PreTrainedModel, case: OracleCase) -> None:
    tensors = {name: t.to(case.dtype).contiguous() for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    if case.shards == 1:
        save_file(tensors, path / "model.safetensors")
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(case.shards):
        file = f"model-{shard + 1:05}-of-{case.shards:05}.safetensors"
        part = names[shard :: case.shards]
        save_file({name: tensors[name] for name in part}, path / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """[len(ids), V] float32."""
    return model(torch.tensor([ids])).logits[0].float()


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> tuple[list[int], int]:
    """The next `count` ids, and how many of them have a margin that rounding cannot turn."""
    ids = list(prompt)
    certain = count
    for step in range(count):
        best = logits(model, ids)[-1].topk(2)
        if float(best.values[0] - best.values[1]) < MARGIN:
            certain = min(certain, step)
        ids.append(int(best.indices[0]))
    return ids[len(prompt) :], certain
