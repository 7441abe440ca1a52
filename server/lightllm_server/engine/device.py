"""What `auto` means here: device, dtype of the model, dtype of its KV cache."""

from __future__ import annotations

import torch

from lightllm_server.config import EngineConfig
from lightllm_server.cpu_features import has_bf16_instructions
from lightllm_server.errors import ConfigError
from lightllm_server.models.config import ModelConfig
from lightllm_server.models.kv_support import int8_kv_support

__all__ = ["is_device_fault", "resolve_device", "resolve_dtype", "resolve_kv_dtype"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# the oldest GPU that the kernels' block sizes fit: one of 7.5 has 64 KiB of shared memory
_OLDEST = (8, 0)


def resolve_device(config: EngineConfig, rank: int) -> torch.device:
    """The device of a rank; raises ConfigError for cuda without CUDA, with too few GPUs or with one
    that is too old.
    """
    gpus = torch.cuda.device_count() if config.device != "cpu" else 0
    if config.device == "cuda" and gpus < config.tp:
        raise ConfigError(f"--device cuda with --tp {config.tp}: {gpus} CUDA devices are visible")
    if gpus and gpus >= config.tp:
        capability = torch.cuda.get_device_capability(rank)
        if capability < _OLDEST:
            raise ConfigError(
                f"GPU {rank} ({torch.cuda.get_device_name(rank)}) has compute capability "
                f"{capability[0]}.{capability[1]}, needed: 8.0 (A100) or newer, or --device cpu"
            )
        return torch.device("cuda", rank)
    return torch.device("cpu")


def is_device_fault(error: BaseException) -> bool:
    """Whether a CUDA call failed for another reason than memory, so that the context is lost.

    torch raises AcceleratorError for the runtime's errors, a plain RuntimeError for those of its
    libraries; Triton one for the driver's. Memory that is not there may be there for the next step.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return False
    text = str(error)
    if "out of memory" in text or "ALLOC_FAILED" in text:
        return False
    if isinstance(error, (torch.AcceleratorError, torch.cuda.CudaError)):
        return True
    return any(mark in text for mark in ("CUDA error", "CUDA driver error", "Triton Error [CUDA]"))


def resolve_dtype(config: EngineConfig, model: ModelConfig, device: torch.device) -> torch.dtype:
    """`--dtype`, where auto is the model's on CUDA and on the CPU the one that it is fast with."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    if device.type == "cpu":
        return torch.bfloat16 if has_bf16_instructions() else torch.float32
    return _DTYPES[model.dtype]


def resolve_kv_dtype(
    config: EngineConfig, model: ModelConfig, device: torch.device, dtype: torch.dtype
) -> tuple[torch.dtype, str]:
    """The KV cache's dtype and the reason; raises ConfigError for an explicit int8 without
    support.
    """
    if config.kv_dtype == "model":
        return dtype, "asked for with --kv-dtype model"
    supported, reason = int8_kv_support(model)
    if config.kv_dtype == "int8":
        if not supported:
            raise ConfigError(f"--kv-dtype int8 is not supported: {reason}; allowed: auto, model")
        return torch.int8, "asked for with --kv-dtype int8"
    if device.type == "cpu":
        return dtype, "auto keeps the model's dtype on the CPU"
    return (torch.int8, f"auto: {reason}") if supported else (dtype, f"auto: {reason}")
