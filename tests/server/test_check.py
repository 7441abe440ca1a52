"""The check: facts against hand-reckoned figures, each broken model directory, speed."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightllm_server import check as checks
from lightllm_server.check import check, check_engine, check_tp, valid_tp_sizes
from lightllm_server.config import EngineConfig
from lightllm_server.errors import ConfigError
from lightllm_server.models.config import ModelConfig
from tiny_llama import tiny_llama, write_tiny_llama


@pytest.fixture
def model_dir(tmp_path):
    """A copy that a test may break."""
    return Path(shutil.copytree(tiny_llama(), tmp_path / "model"))


def errors_of(path: Path, **options) -> tuple[str, ...]:
    report = check(str(path), gpus=8, **options)
    assert json.loads(report.to_json())["errors"] == list(report.errors)
    return report.errors


def set_config(path: Path, **fields) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "inner", "sizes"),
    [
        (12, 4, 96, (1, 2, 4, 12)),
        (6, 6, 96, (1, 2, 3, 6)),
        (8, 8, 96, (1, 2, 4, 8)),
        (8, 1, 96, (1, 2, 4, 8)),
        # 28 heads over 7 ranks would cut through groups of KV heads
        (28, 4, 112, (1, 2, 4, 28)),
        (40, 8, 80, (1, 2, 4, 8, 40)),
        # the MLP cannot be cut in three
        (6, 6, 128, (1, 2)),
        (7, 7, 64, (1,)),
    ],
)
def test_valid_tp_sizes(tmp_path, heads, kv_heads, inner, sizes):
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    path = write_tiny_llama(
        tmp_path, hidden_size=heads * 4, intermediate_size=inner, num_hidden_layers=1, **shape
    )
    model = ModelConfig.from_dir(path)
    assert valid_tp_sizes(model) == sizes
    assert valid_tp_sizes(model, 4) == tuple(size for size in sizes if size <= 4)
    for tp in range(1, 65):
        if tp in sizes:
            check_tp(model, tp)
        else:
            with pytest.raises(ConfigError, match=rf"--tp {tp}: .* valid sizes: 1\b"):
                check_tp(model, tp)


def test_facts_are_those_of_the_model():
    path = tiny_llama(torch_dtype="bfloat16", tie_word_embeddings=True)
    facts = check(str(path), gpus=2).facts
    expected = {
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "dtype": "bfloat16",
        "layers": 2,
        "hidden_size": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "vocab_size": 261,
        "max_length": 4096,
        "gpus": 2,
        "valid_tp": [1, 2],
        "tp": 2,
    }
    assert {name: facts[name] for name in expected} == expected
    # layers × (K and V) × heads × (width × element + scale)
    assert facts["kv_bytes_per_token"] == {"model": 2 * 2 * 2 * 16 * 2, "int8": 2 * 2 * 2 * 18}
    assert facts["int8_kv"]["supported"] is True
    assert facts["int8_kv"]["reason"]
    # the file holds float32, and nothing else than the tensors and its header
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64
    elements = 261 * 64 + 2 * layer + 64
    assert facts["weight_bytes"] == 4 * elements
    memory = facts["memory_per_gpu"]
    assert set(memory) == {"1", "2"}
    reserve = int(2.3 * 2**30)
    assert memory["1"] == int(elements * 2 * 1.07) + reserve + 4096 * 256
    assert memory["2"] == int(elements * 1.07) + reserve + 4096 * 128


def test_kv_heads_are_replicated_beyond_their_number():
    path = str(tiny_llama())
    whole = check(path, gpus=4).facts["memory_per_gpu"]
    int8 = check(path, gpus=4, kv_dtype="int8").facts["memory_per_gpu"]
    saved = [(whole[tp] - int8[tp]) // 4096 for tp in ("1", "2", "4")]
    # two KV heads: a rank holds both, one, one
    assert saved == [2 * 2 * heads * (16 * 4 - 18) for heads in (2, 1, 1)]


def test_an_impossible_tp_lists_the_valid_ones(model_dir):
    (message,) = errors_of(model_dir, tp=3)
    assert message.startswith("--tp 3: ")
    assert message.endswith("valid sizes: 1, 2, 4")
    with pytest.raises(ConfigError, match="valid sizes: 1, 2, 4"):
        check_engine(EngineConfig(model_dir=str(model_dir), tp=3))


def test_int8_kv_of_a_model_that_cannot_is_an_error(model_dir, monkeypatch):
    monkeypatch.setattr(checks, "int8_kv_support", lambda model: (False, "latent attention"))
    (message,) = errors_of(model_dir, kv_dtype="int8")
    assert message.startswith("--kv-dtype int8: ")
    assert "latent attention" in message
    assert errors_of(model_dir, kv_dtype="auto") == ()
    with pytest.raises(ConfigError, match="latent attention"):
        check_engine(EngineConfig(model_dir=str(model_dir), kv_dtype="int8"))


def cut(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def garbage(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"\xff" * 5000)


def huge_header(path: Path) -> None:
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")


def no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def pickled_weights(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def more_layers(path: Path) -> None:
    set_config(path, num_hidden_layers=3)


def fewer_layers(path: Path) -> None:
    set_config(path, num_hidden_layers=1)


def other_shape(path: Path) -> None:
    set_config(path, intermediate_size=256)


def unknown_architecture(path: Path) -> None:
    set_config(path, architectures=["MambaForCausalLM"])


def unknown_rope(path: Path) -> None:
    set_config(path, rope_scaling={"rope_type": "spiral", "factor": 2.0})


def no_config(path: Path) -> None:
    (path / "config.json").unlink()


def broken_config(path: Path) -> None:
    (path / "config.json").write_text("{")


def no_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


def broken_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").write_text("not json")


@pytest.mark.parametrize(
    ("damage", "file", "named"),
    [
        (cut, "model.safetensors", ""),
        (garbage, "model.safetensors", ""),
        (huge_header, "model.safetensors", ""),
        (no_weights, "", "model.safetensors"),
        (pickled_weights, "", "model.safetensors"),
        (more_layers, "", "model.layers.2."),
        (fewer_layers, "model.safetensors", "model.layers.1."),
        (other_shape, "model.safetensors", "mlp."),
        (unknown_architecture, "config.json", "MambaForCausalLM"),
        (unknown_rope, "config.json", "spiral"),
        (no_config, "config.json", "no such file"),
        (broken_config, "config.json", "JSON"),
        (no_tokenizer, "", "tokenizer.json"),
        (broken_tokenizer, "tokenizer.json", "JSON"),
    ],
)
def test_a_broken_model_is_one_message_naming_the_file(model_dir, damage, file, named):
    assert errors_of(model_dir) == ()
    damage(model_dir)
    (message,) = errors_of(model_dir)
    assert message.startswith(str(model_dir / file))
    assert named in message
    assert "\n" not in message
    with pytest.raises(ConfigError) as caught:
        check_engine(EngineConfig(model_dir=str(model_dir)))
    assert str(caught.value) == message


def test_several_errors_are_all_reported(model_dir):
    cut(model_dir)
    no_tokenizer(model_dir)
    assert len(errors_of(model_dir, tp=3)) == 3


def test_a_model_without_weights_may_be_null(model_dir):
    no_weights(model_dir)
    check_engine(EngineConfig(model_dir=str(model_dir), null_model=True))


def test_the_command_is_quick_and_needs_no_torch(model_dir):
    code = (
        "import sys; from lightllm_server import cli; code = cli.main(sys.argv[1:]);"
        "sys.exit(code or ('torch' in sys.modules) or ('numpy' in sys.modules))"
    )
    command = [sys.executable, "-c", code, "check", "--model-dir", str(model_dir), "--gpus", "2"]
    began = time.process_time(), time.monotonic()
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout)["tp"] == 2
    assert time.monotonic() - began[1] < 2
