"""A checkpoint held against its config: nothing missing, left over or misshapen. No torch here."""

from __future__ import annotations

from pathlib import Path

from lightllm_server.errors import ModelError
from lightllm_server.models.config import ModelConfig
from lightllm_server.models.registry import expected_tensors, is_ignored
from lightllm_server.models.safetensors_header import TensorInfo, read_headers

__all__ = ["WEIGHT_DTYPES", "read_checkpoint"]

WEIGHT_DTYPES = ("F32", "BF16", "F16")
_MAX_NAMED = 5


def read_checkpoint(model_dir: Path | str, config: ModelConfig) -> dict[str, TensorInfo]:
    """Name → place of the tensors that the model reads, and of no others.

    Raises ModelError naming file and tensors for whatever is missing, left over, misshapen or of a
    dtype that is not read.
    """
    model_dir = Path(model_dir)
    found = read_headers(model_dir)
    expected = expected_tensors(config)
    if missing := [name for name in expected if name not in found]:
        raise ModelError(model_dir, f"weights lack {_names(missing)}")
    extra = [name for name in found if name not in expected and not is_ignored(config, name)]
    if extra:
        raise ModelError(
            found[extra[0]].file, f"holds {_names(extra)}, which config.json does not call for"
        )
    for name, shape in expected.items():
        info = found[name]
        if info.shape != shape:
            raise ModelError(
                info.file,
                f"tensor {name} has shape {list(info.shape)}, config.json says {list(shape)}",
            )
        if info.dtype not in WEIGHT_DTYPES:
            allowed = ", ".join(WEIGHT_DTYPES)
            raise ModelError(info.file, f"tensor {name} has dtype {info.dtype}, allowed: {allowed}")
    return {name: found[name] for name in expected}


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMED])
    rest = len(names) - _MAX_NAMED
    return f"tensor {shown}" + (f" and {rest} more" if rest > 0 else "")
