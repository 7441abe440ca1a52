"""A Hugging Face `config.json` (and `generation_config.json`) as one ModelConfig. No torch here.

Reads both dialects: the one of old checkpoints (`rope_theta`, `rope_scaling`, `torch_dtype`) and
the one that transformers 5 writes (`rope_parameters`, `dtype`). What cannot be served exactly is
refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from lightllm_server.errors import ModelError
from lightllm_server.models.json_fields import JsonFields, read_json_object
from lightllm_server.models.registry import ARCHITECTURES

__all__ = ["ModelConfig", "RopeConfig", "RopeType"]

RopeType = Literal["default", "linear", "llama3", "dynamic"]
DtypeName = Literal["float32", "bfloat16", "float16"]
_ROPE_TYPES: tuple[RopeType, ...] = ("default", "linear", "llama3", "dynamic")
_DTYPES: tuple[DtypeName, ...] = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding; `factor` and what follows matter for the scaled types alone.

    original_max_position: the length that the model was trained with before scaling.
    """

    kind: RopeType = "default"
    theta: float = 10000.0
    rotary_dim: int
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What the engine needs to know of a model; lengths in tokens.

    max_length: the longest sequence that is served exactly (dynamic rope up to its original
    length, a sliding window up to its width).
    """

    architecture: str
    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_length: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    dtype: DtypeName
    eos_ids: tuple[int, ...]

    @classmethod
    def from_dir(cls, model_dir: Path | str) -> ModelConfig:
        """Raise ModelError naming file, field, value and what is allowed."""
        model_dir = Path(model_dir)
        if not model_dir.is_dir():
            raise ModelError(model_dir, "no such directory")
        fields = read_json_object(model_dir / "config.json")
        architecture = _architecture(fields)
        if "quantization_config" in fields:
            raise fields.refuse(
                "quantization_config", "absent (quantised checkpoints are not read)"
            )
        fields.choice("hidden_act", "silu", ("silu",))
        num_heads = fields.integer("num_attention_heads", le=65536)
        num_kv_heads = fields.integer("num_key_value_heads", num_heads, le=num_heads)
        if num_heads % num_kv_heads:
            raise fields.refuse("num_key_value_heads", f"a divisor of {num_heads} attention heads")
        hidden_size = fields.integer("hidden_size")
        head_dim = _head_dim(fields, hidden_size, num_heads)
        vocab_size = fields.integer("vocab_size")
        rope = _rope(fields, head_dim)
        is_qwen2 = architecture == "Qwen2ForCausalLM"
        attention_bias = fields.flag("attention_bias", False)
        return cls(
            architecture=architecture,
            family=ARCHITECTURES[architecture].name,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size"),
            num_layers=fields.integer("num_hidden_layers", le=4096),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6, gt=0.0, le=1.0),
            rope=rope,
            max_length=_max_length(fields, rope, is_qwen2),
            qkv_bias=is_qwen2 or attention_bias,
            output_bias=attention_bias and not is_qwen2,
            mlp_bias=fields.flag("mlp_bias", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            dtype=_dtype(fields),
            eos_ids=_eos_ids(fields, model_dir / "generation_config.json", vocab_size),
        )


def _architecture(fields: JsonFields) -> str:
    names = fields.raw("architectures")
    if isinstance(names, list) and len(names) == 1 and names[0] in ARCHITECTURES:
        return str(names[0])
    raise fields.refuse(
        "architectures", "one of " + ", ".join(f"[{name}]" for name in ARCHITECTURES)
    )


def _head_dim(fields: JsonFields, hidden_size: int, num_heads: int) -> int:
    if "head_dim" not in fields and hidden_size % num_heads:
        raise fields.refuse("hidden_size", f"a multiple of {num_heads} attention heads")
    head_dim = fields.integer("head_dim", hidden_size // num_heads, le=4096)
    if head_dim % 2:
        name = "head_dim" if "head_dim" in fields else "hidden_size"
        raise fields.refuse(name, "an even size per attention head")
    return head_dim


def _rope(fields: JsonFields, head_dim: int) -> RopeConfig:
    """From `rope_parameters` (new dialect), else from `rope_scaling` and `rope_theta` (old)."""
    new = fields.section("rope_parameters")
    scaling = new if "rope_parameters" in fields else fields.section("rope_scaling")
    key = "rope_type" if "rope_type" in scaling else "type"
    kind = cast(RopeType, scaling.choice(key, "default", _ROPE_TYPES))
    theta_from = scaling if "rope_theta" in scaling else fields
    partial_from = scaling if "partial_rotary_factor" in scaling else fields
    partial = partial_from.number("partial_rotary_factor", 1.0, gt=0.0, le=1.0)
    rotary_dim = int(head_dim * partial)
    if rotary_dim < 2 or rotary_dim % 2:
        raise partial_from.refuse(
            "partial_rotary_factor", f"an even share of head_dim {head_dim}, at least 2"
        )
    theta = theta_from.number("rope_theta", 10000.0, gt=0.0, le=1e12)
    max_position = fields.integer("max_position_embeddings", 2048)
    if kind == "default":
        return RopeConfig(theta=theta, rotary_dim=rotary_dim, original_max_position=max_position)
    original_from = scaling if "original_max_position_embeddings" in scaling else fields
    llama3 = kind == "llama3"
    low = scaling.number("low_freq_factor", None if llama3 else 1.0, gt=0.0, le=1e6)
    high = scaling.number("high_freq_factor", None if llama3 else 4.0, gt=0.0, le=1e6)
    if llama3 and high <= low:
        raise scaling.refuse("high_freq_factor", f"above low_freq_factor {low:g}")
    return RopeConfig(
        kind=kind,
        theta=theta,
        rotary_dim=rotary_dim,
        factor=scaling.number("factor", gt=0.0, le=1e6),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=original_from.integer(
            "original_max_position_embeddings", max_position
        ),
    )


def _max_length(fields: JsonFields, rope: RopeConfig, is_qwen2: bool) -> int:
    length = fields.integer("max_position_embeddings", 2048)
    if rope.kind == "dynamic":
        length = min(length, rope.original_max_position)
    if rope.kind == "linear" and rope.original_max_position == length:
        # such checkpoints give the length before scaling
        length = int(length * rope.factor)
    has_window = fields.flag("use_sliding_window", False) if is_qwen2 else True
    if has_window and "sliding_window" in fields:
        # within its first window, a windowed model attends to everything
        length = min(length, fields.integer("sliding_window"))
    return length


def _dtype(fields: JsonFields) -> DtypeName:
    name = "dtype" if "dtype" in fields else "torch_dtype"
    return cast(DtypeName, fields.choice(name, "float32", _DTYPES))


def _eos_ids(fields: JsonFields, generation_path: Path, vocab_size: int) -> tuple[int, ...]:
    """The union: chat models often list their end-of-turn id in one of the two files alone."""
    ids = fields.token_ids("eos_token_id", vocab_size)
    if generation_path.exists():
        generation = read_json_object(generation_path)
        ids = generation.token_ids("eos_token_id", vocab_size) + ids
    return tuple(dict.fromkeys(ids))
