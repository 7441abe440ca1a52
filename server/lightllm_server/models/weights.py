"""Streams a checkpoint's tensors into a model: each destination's own loader reads only its
tensor-parallel shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lightllm_server.errors import ModelError
from lightllm_server.layers.parameter import Loader
from lightllm_server.models.safetensors_header import TensorInfo

__all__ = ["load_weights"]


def load_weights(
    loaders: Mapping[str, Loader],
    checkpoint: Mapping[str, TensorInfo],
    progress: Callable[[float], None],
) -> int:
    """Give every tensor of the checkpoint to the loader of its name, in the order of the files.

    progress: called with the share loaded so far, 0 to 1, after each tensor.
    Returns the checkpoint's bytes. Raises ModelError if a tensor cannot be read; the names on both
    sides must be the same, which `read_checkpoint` and the model's own table guarantee.
    """
    assert loaders.keys() == checkpoint.keys(), loaders.keys() ^ checkpoint.keys()
    total = sum(info.num_bytes for info in checkpoint.values())
    done = 0
    in_file_order = sorted(checkpoint, key=lambda name: _place(checkpoint[name]))
    for file, names in groupby(in_file_order, key=lambda name: checkpoint[name].file):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in names:
                    loaders[name](tensors.get_slice(name))
                    done += checkpoint[name].num_bytes
                    progress(done / total)
        except (OSError, SafetensorError) as error:
            raise ModelError(file, f"cannot be read: {error}") from error
    return total


def _place(info: TensorInfo) -> tuple[Path, int]:
    return info.file, info.begin
