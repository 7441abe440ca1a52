"""What can be said of a model from its config files and safetensors headers. No torch, no weights.

The report of `lightllm-server check`, which the operator reads, and the server's own preflight.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightllm_server.config import EngineConfig
from lightllm_server.errors import ConfigError, ModelError
from lightllm_server.fetch.ledger import fetched_commit
from lightllm_server.models.checkpoint import read_checkpoint
from lightllm_server.models.config import ModelConfig
from lightllm_server.models.kv_support import int8_kv_support, kv_bytes_per_token
from lightllm_server.models.safetensors_header import TensorInfo

__all__ = [
    "MAX_TP",
    "Report",
    "check",
    "check_engine",
    "check_kv_dtype",
    "check_tokenizer",
    "check_tp",
    "valid_tp_sizes",
]

MAX_TP = 64
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# CUDA context, collective buffers and activations; weights are loaded with this much to spare
_FIXED_BYTES = int(2.3 * 2**30)
_WEIGHT_MARGIN = 0.07
# the longest request that memory is reckoned for, the server's own default bound
_RECKONED_LENGTH = 16384
# as in tokenizer.py, which cannot be imported here without `tokenizers`
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tiktoken.model",
    "vocab.json",
)


@dataclass(frozen=True, slots=True)
class Report:
    """`facts` is the JSON object without the errors; some are missing if there are errors."""

    facts: dict[str, Any]
    errors: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps({**self.facts, "errors": list(self.errors)}, ensure_ascii=False)


def valid_tp_sizes(model: ModelConfig, limit: int = MAX_TP) -> tuple[int, ...]:
    """Tensor-parallel sizes up to `limit` that split the model evenly; 1 is always one of them.

    Query heads and the MLP must divide; KV heads must divide, or be replicated evenly over ranks.
    The vocabulary is padded.
    """

    def fits(tp: int) -> bool:
        split = model.num_kv_heads % tp == 0 or tp % model.num_kv_heads == 0
        return model.num_heads % tp == 0 and model.intermediate_size % tp == 0 and split

    return tuple(tp for tp in range(1, limit + 1) if fits(tp))


def check_tp(model: ModelConfig, tp: int) -> None:
    """Raise ConfigError that lists the valid sizes if `tp` is none of them."""
    valid = valid_tp_sizes(model)
    if tp not in valid:
        allowed = ", ".join(map(str, valid))
        raise ConfigError(
            f"--tp {tp}: impossible with {model.num_heads} attention heads, {model.num_kv_heads} "
            f"KV heads and MLP size {model.intermediate_size}; valid sizes: {allowed}"
        )


def check_kv_dtype(model: ModelConfig, kv_dtype: str) -> None:
    """Raise ConfigError with the reason if int8 is asked for and the model does not support it."""
    supported, reason = int8_kv_support(model)
    if kv_dtype == "int8" and not supported:
        raise ConfigError(f"--kv-dtype int8: not supported: {reason}; allowed: auto, model")


def _weights(model: ModelConfig, tensors: dict[str, TensorInfo]) -> tuple[int, int]:
    """Bytes in the files, and in memory at the model's dtype."""
    stored = sum(info.num_bytes for info in tensors.values())
    elements = sum(math.prod(info.shape) for info in tensors.values())
    return stored, elements * _DTYPE_BYTES[model.dtype]


def _memory_per_gpu(model: ModelConfig, weights: int, tp: int, *, int8: bool) -> int:
    """Bytes for weights, one longest request in the KV cache, and a fixed reserve."""
    tokens = min(model.max_length, _RECKONED_LENGTH)
    element_bytes = 1 if int8 else _DTYPE_BYTES[model.dtype]
    kv = tokens * kv_bytes_per_token(model, element_bytes=element_bytes, tp=tp)
    return int(weights * (1 + _WEIGHT_MARGIN) / tp) + _FIXED_BYTES + kv


def _model_facts(model: ModelConfig, gpus: int) -> dict[str, Any]:
    valid = valid_tp_sizes(model, gpus)
    supported, reason = int8_kv_support(model)
    return {
        "family": model.family,
        "architecture": model.architecture,
        "dtype": model.dtype,
        "layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "heads": model.num_heads,
        "kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "max_length": model.max_length,
        "gpus": gpus,
        "valid_tp": list(valid),
        "tp": valid[-1],
        "kv_bytes_per_token": {
            "model": kv_bytes_per_token(model, element_bytes=_DTYPE_BYTES[model.dtype]),
            "int8": kv_bytes_per_token(model, element_bytes=1),
        },
        "int8_kv": {"supported": supported, "reason": reason},
    }


def check_tokenizer(model_dir: Path) -> None:
    """Raise ModelError that names the files looked for, or the one that is no JSON."""
    if not any((model_dir / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(model_dir, "no tokenizer: found none of " + ", ".join(_TOKENIZER_FILES))
    path = model_dir / _TOKENIZER_FILES[0]
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            head = file.read(1024).lstrip()
    except OSError as error:
        raise ModelError(path, f"cannot be read: {error.strerror}") from error
    if not head.startswith(b"{"):
        raise ModelError(path, "is not a JSON object")


def check(model_dir: str, *, gpus: int, tp: int | None = None, kv_dtype: str = "auto") -> Report:
    """Everything that is wrong and everything that could still be found out; never raises."""
    directory = Path(model_dir)
    facts: dict[str, Any] = {"model_dir": model_dir}
    errors: list[str] = []
    try:
        model = ModelConfig.from_dir(directory)
    except ConfigError as error:
        return Report(facts, (str(error),))
    facts |= _model_facts(model, gpus)
    if commit := fetched_commit(directory):
        facts["commit"] = commit
    for rule in (
        partial(check_tp, model, 1 if tp is None else tp),
        partial(check_kv_dtype, model, kv_dtype),
        partial(check_tokenizer, directory),
    ):
        try:
            rule()
        except ConfigError as error:
            errors.append(str(error))
    try:
        stored, loaded = _weights(model, read_checkpoint(directory, model))
    except ModelError as error:
        return Report(facts, (*errors, str(error)))
    facts["weight_bytes"] = stored
    facts["memory_per_gpu"] = {
        str(size): _memory_per_gpu(model, loaded, size, int8=kv_dtype == "int8")
        for size in facts["valid_tp"]
    }
    return Report(facts, tuple(errors))


def check_engine(config: EngineConfig) -> None:
    """The preflight of the model; raises ConfigError with the first thing that is wrong."""
    directory = Path(config.model_dir)
    model = ModelConfig.from_dir(directory)
    check_tp(model, config.tp)
    check_kv_dtype(model, config.kv_dtype)
    check_tokenizer(directory)
    # neither the null model nor random weights are read
    if not config.null_model and config.load_format != "dummy":
        read_checkpoint(directory, model)
