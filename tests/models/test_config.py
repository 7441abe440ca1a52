"""config.json of both dialects becomes the same ModelConfig; what cannot be served is refused by
name.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightllm_server.errors import ModelError
from lightllm_server.models.config import ModelConfig, RopeConfig

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def read(path: Path, generation: Any = None, **changes: Any) -> ModelConfig:
    fields = {name: value for name, value in (BASE | changes).items() if value != "absent"}
    (path / "config.json").write_text(json.dumps(fields))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.from_dir(path)


def test_plain_config(tmp_path: Path) -> None:
    assert read(tmp_path) == ModelConfig(
        architecture="LlamaForCausalLM",
        family="llama",
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        rms_norm_eps=1e-5,
        rope=RopeConfig(rotary_dim=16, original_max_position=512),
        max_length=512,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        dtype="float32",
        eos_ids=(),
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"rope_theta": 5e5, "torch_dtype": "bfloat16"},
            {
                "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
                "dtype": "bfloat16",
            },
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 1e4},
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    **LLAMA3,
                    "original_max_position_embeddings": 128,
                },
                "rope_theta": 5e5,
            },
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    **LLAMA3,
                    "original_max_position_embeddings": 128,
                    "rope_theta": 5e5,
                }
            },
        ),
        (
            {"rope_scaling": None, "partial_rotary_factor": 0.5, "rope_theta": None},
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        ),
    ],
)
def test_dialects_agree(tmp_path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    assert read(tmp_path, **old) == read(tmp_path, **new)
    assert read(tmp_path, **old) != read(tmp_path)


def test_lengths(tmp_path: Path) -> None:
    assert read(tmp_path, rope_scaling={"type": "linear", "factor": 4.0}).max_length == 2048
    assert read(tmp_path, rope_scaling={"type": "dynamic", "factor": 4.0}).max_length == 512
    mistral = {"architectures": ["MistralForCausalLM"], "sliding_window": 128}
    assert read(tmp_path, **mistral).max_length == 128
    assert read(tmp_path, **(mistral | {"sliding_window": None})).max_length == 512
    qwen2 = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 128}
    assert read(tmp_path, **qwen2).max_length == 512
    assert read(tmp_path, **qwen2, use_sliding_window=True).max_length == 128


def test_biases(tmp_path: Path) -> None:
    llama = read(tmp_path, attention_bias=True)
    assert (llama.qkv_bias, llama.output_bias) == (True, True)
    qwen2 = read(tmp_path, architectures=["Qwen2ForCausalLM"])
    assert (qwen2.qkv_bias, qwen2.output_bias) == (True, False)


def test_eos_ids_of_both_files(tmp_path: Path) -> None:
    assert read(tmp_path, eos_token_id=7).eos_ids == (7,)
    assert read(tmp_path, {"eos_token_id": [5, 6]}, eos_token_id=6).eos_ids == (5, 6)
    assert read(tmp_path, {"eos_token_id": 9}, eos_token_id=None).eos_ids == (9,)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("architectures", {"architectures": ["GPT2LMHeadModel"]}),
        ("architectures", {"architectures": "absent"}),
        ("architectures", {"architectures": ["LlamaForCausalLM"] * 2}),
        ("quantization_config", {"quantization_config": {"quant_method": "gptq"}}),
        ("hidden_act", {"hidden_act": "gelu"}),
        ("vocab_size", {"vocab_size": "absent"}),
        ("vocab_size", {"vocab_size": 0}),
        ("vocab_size", {"vocab_size": True}),
        ("num_hidden_layers", {"num_hidden_layers": "two"}),
        ("num_key_value_heads", {"num_key_value_heads": 3}),
        ("hidden_size", {"hidden_size": 66}),
        ("hidden_size", {"hidden_size": 20}),
        ("head_dim", {"head_dim": 15}),
        ("rms_norm_eps", {"rms_norm_eps": -1.0}),
        ("attention_bias", {"attention_bias": "yes"}),
        ("torch_dtype", {"torch_dtype": "int4"}),
        ("dtype", {"dtype": "float8"}),
        ("rope_scaling.type", {"rope_scaling": {"type": "yarn", "factor": 2.0}}),
        ("rope_parameters.rope_type", {"rope_parameters": {"rope_type": "longrope"}}),
        ("rope_scaling.factor", {"rope_scaling": {"type": "linear"}}),
        ("rope_scaling", {"rope_scaling": [1]}),
        ("rope_scaling.low_freq_factor", {"rope_scaling": {"type": "llama3", "factor": 8.0}}),
        ("rope_theta", {"rope_theta": 0}),
        ("partial_rotary_factor", {"partial_rotary_factor": 0.1}),
        ("eos_token_id", {"eos_token_id": 100}),
        ("eos_token_id", {"eos_token_id": [1, "2"]}),
    ],
)
def test_refusals_name_file_field_and_allowed(
    tmp_path: Path, field: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(ModelError) as error:
        read(tmp_path, **changes)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: {field} is ")
    assert ", allowed: " in str(error.value)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "no such file"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, cause: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=cause):
        ModelConfig.from_dir(tmp_path)


def test_bad_generation_config_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json: eos_token_id is 'x'"):
        read(tmp_path, {"eos_token_id": "x"})
    with pytest.raises(ModelError, match="no such directory"):
        ModelConfig.from_dir(tmp_path / "nowhere")


def test_nothing_of_this_imports_torch() -> None:
    code = (
        "import sys\n"
        "import lightllm_server.models.checkpoint, lightllm_server.models.kv_support\n"
        "import lightllm_server.engine.limits, lightllm_server.engine.build\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
