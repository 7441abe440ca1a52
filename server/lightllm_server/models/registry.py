"""Which architectures are served, and what their checkpoints hold.

No torch here, since `lightllm-server check` reads this.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightllm_server.models import llama_tensors

if TYPE_CHECKING:
    from lightllm_server.models.config import ModelConfig

__all__ = ["ARCHITECTURES", "Family", "expected_tensors", "is_ignored", "load_model_class"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A model family: one file of code, one table of tensors.

    model: "module:Class", imported when the weights are loaded.
    tensors: config → name and shape of each tensor that a checkpoint must hold.
    ignored: names that a checkpoint may hold beside them, such as buffers that are computed anyway.
    """

    name: str
    model: str
    tensors: Callable[[ModelConfig], dict[str, tuple[int, ...]]]
    ignored: re.Pattern[str]


_LLAMA = Family(
    name="llama",
    model="lightllm_server.models.llama:LlamaForCausalLM",
    tensors=llama_tensors.expected_tensors,
    ignored=llama_tensors.IGNORED,
)

# mistral and qwen2 differ from llama in config.py alone: their window caps the length, qwen2 has
# biases on q, k and v
ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
}


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and full (unsharded) shape of every tensor that the checkpoint must hold."""
    return ARCHITECTURES[config.architecture].tensors(config)


def is_ignored(config: ModelConfig, name: str) -> bool:
    """True for tensors that the checkpoint may hold and the model does not read."""
    if name == "lm_head.weight" and config.tie_word_embeddings:
        return True
    return ARCHITECTURES[config.architecture].ignored.fullmatch(name) is not None


def load_model_class(architecture: str) -> Any:
    """Import the model's class, and torch with it."""
    module, _, name = ARCHITECTURES[architecture].model.partition(":")
    return getattr(importlib.import_module(module), name)
