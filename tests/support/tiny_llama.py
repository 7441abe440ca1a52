"""Tiny random LLaMA checkpoints in Hugging Face's layout, written without torch in milliseconds.

The tokenizer is byte-level without merges: token id = byte's index in the alphabet, so any text
encodes and any ids decode.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

__all__ = ["CHAT_TEMPLATE", "tiny_llama", "write_tiny_llama"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ("<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>")


def write_tiny_llama(path: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Write config, tokenizer and random float32 weights into `path` (created); returns it.

    overrides: fields of config.json; None removes one.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": tokenizer.token_to_id("<s>"),
        "eos_token_id": tokenizer.token_to_id("</s>"),
    }
    config.update(overrides)
    config = {name: value for name, value in config.items() if value is not None}
    (path / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer.save(str(path / "tokenizer.json"))
    tokenizer_config = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": CHAT_TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1))
    save_file(_weights(path, seed), path / "model.safetensors", metadata={"format": "pt"})
    return path


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    return tokenizer


def _weights(path: Path, seed: int) -> dict[str, np.ndarray]:
    # the names and shapes come from the server's own table, which is tested against transformers
    from lightllm_server.models.config import ModelConfig
    from lightllm_server.models.registry import expected_tensors

    random = np.random.default_rng(seed)
    shapes = expected_tensors(ModelConfig.from_dir(path))
    return {
        name: (np.ones(shape) if "norm" in name else random.normal(0, 0.1, shape)).astype("float32")
        for name, shape in sorted(shapes.items())
    }


@functools.cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="tiny-llama-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@functools.cache
def _cached(key: str) -> Path:
    overrides = json.loads(key)
    return write_tiny_llama(_root() / str(_cached.cache_info().misses), **overrides)


def tiny_llama(**overrides: Any) -> Path:
    """The directory of such a model, written once per test process; do not change what is in it."""
    return _cached(json.dumps(overrides, sort_keys=True))
