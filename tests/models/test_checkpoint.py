"""Nothing missing, nothing left over, nothing misshapen: else the load fails by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lightllm_server.errors import ModelError
from lightllm_server.layers.parameter import WeightOptions
from lightllm_server.layers.tensor_parallel import SingleRank
from lightllm_server.models.checkpoint import read_checkpoint
from lightllm_server.models.config import ModelConfig
from lightllm_server.models.llama import LlamaForCausalLM
from lightllm_server.models.registry import expected_tensors
from lightllm_server.models.weights import load_weights
from llama_oracle import CASES, write_oracle
from tiny_llama import write_tiny_llama

UP = "model.layers.1.mlp.up_proj.weight"


def rewrite(path: Path, **changes: np.ndarray | None) -> None:
    """Change tensors of the directory's only file; None removes one."""
    tensors = load_file(path / "model.safetensors") | changes
    save_file({n: t for n, t in tensors.items() if t is not None}, path / "model.safetensors")


def check(path: Path) -> None:
    read_checkpoint(path, ModelConfig.from_dir(path))


def test_complete(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    check(tmp_path)
    # what follows from the config anyway may be there
    rewrite(tmp_path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    check(tmp_path)


def test_tied_head_may_be_stored(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    rewrite(tmp_path, **{"lm_head.weight": tensors["model.embed_tokens.weight"]})
    check(tmp_path)


def test_missing(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    rewrite(tmp_path, **{UP: None})
    with pytest.raises(ModelError, match=f"weights lack tensor {UP}$"):
        check(tmp_path)


def test_left_over(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    rewrite(tmp_path, **{"model.layers.2.mlp.up_proj.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(ModelError, match=r"model\.safetensors: holds tensor model\.layers\.2"):
        check(tmp_path)


def test_misshapen(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    rewrite(tmp_path, **{UP: np.ones((64, 128), np.float32)})
    with pytest.raises(ModelError, match=rf"{UP} has shape \[64, 128\], .* says \[128, 64\]"):
        check(tmp_path)


def test_wrong_dtype(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    rewrite(tmp_path, **{UP: np.ones((128, 64), np.int8)})
    with pytest.raises(ModelError, match="has dtype I8, allowed: F32, BF16, F16"):
        check(tmp_path)


def test_file_cut_after_the_check(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path)
    config = ModelConfig.from_dir(tmp_path)
    checkpoint = read_checkpoint(tmp_path, config)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        load_weights(model_of(config).loaders(), checkpoint, lambda share: None)


def model_of(config: ModelConfig) -> LlamaForCausalLM:
    options = WeightOptions(dtype=torch.float32, device=torch.device("cpu"))
    return LlamaForCausalLM(config, max_length=16, tp=SingleRank(), options=options)


@pytest.mark.parametrize("name", ["tied", "attention and MLP bias", "qwen2", "3 shards"])
def test_table_equals_the_model_and_transformers(tmp_path: Path, name: str) -> None:
    oracle = write_oracle(tmp_path, CASES[name])
    config = ModelConfig.from_dir(tmp_path)
    table = expected_tensors(config)
    state = {name: tuple(tensor.shape) for name, tensor in oracle.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert table == state
    model = model_of(config)
    assert model.loaders().keys() == table.keys()
    shares: list[float] = []
    load_weights(model.loaders(), read_checkpoint(tmp_path, config), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
