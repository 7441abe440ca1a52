"""Headers of safetensors files: which tensors are where. No torch and no tensor data here.

Nothing else than *.safetensors is ever opened: other formats may carry code.

Format (https://github.com/huggingface/safetensors): 8 bytes little-endian header size, a JSON
object name → {dtype, shape, data_offsets}, then the data without holes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from lightllm_server.errors import ModelError
from lightllm_server.models.json_fields import read_json_object

__all__ = ["DTYPE_BYTES", "INDEX_NAME", "SINGLE_NAME", "TensorInfo", "read_headers"]

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# the bound of the reference implementation
_MAX_HEADER_BYTES = 100_000_000
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file; `begin` and `end` are byte offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


def read_headers(model_dir: Path | str) -> dict[str, TensorInfo]:
    """Every tensor of the directory's checkpoint, single or sharded by an index.

    Raises ModelError naming the file and the cause: no checkpoint, missing shard, truncated or
    garbage header, holes or overlaps, bytes too few or too many, a tensor twice, an index that
    disagrees with its shards.
    """
    model_dir = Path(model_dir)
    index = model_dir / INDEX_NAME
    if index.exists():
        return _read_sharded(index)
    files = sorted(model_dir.glob("*.safetensors"))
    if model_dir / SINGLE_NAME in files:
        return _read_file(model_dir / SINGLE_NAME)
    if len(files) == 1:
        return _read_file(files[0])
    found = f"{len(files)} *.safetensors files without {INDEX_NAME}" if files else "none of them"
    raise ModelError(
        model_dir, f"no weights: looked for {INDEX_NAME} and {SINGLE_NAME}, found {found}"
    )


def _read_sharded(index: Path) -> dict[str, TensorInfo]:
    weight_map = read_json_object(index).raw("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(index, "weight_map is not an object that names tensors")
    for name, shard in weight_map.items():
        # a shard is a plain file beside its index, whatever the index says
        if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard:
            raise ModelError(index, f"weight_map.{name} is {shard!r}, allowed: a file name")
        if not shard.endswith(".safetensors"):
            raise ModelError(index, f"weight_map.{name} is {shard!r}, allowed: *.safetensors")
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        path = index.parent / shard
        if not path.is_file():
            raise ModelError(path, f"missing shard, named by {index.name}")
        for name, info in _read_file(path).items():
            if name in tensors:
                raise ModelError(path, f"tensor {name} is also in {tensors[name].file.name}")
            if name not in weight_map:
                raise ModelError(path, f"tensor {name} is not in {index.name}")
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ModelError(index, f"tensor {name} is not in {shard}")
    return tensors


def _read_file(path: Path) -> dict[str, TensorInfo]:
    try:
        with path.open("rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            header_bytes = int.from_bytes(file.read(8), "little")
            if file_bytes < 8 or header_bytes > file_bytes - 8:
                raise ModelError(
                    path, f"truncated: {file_bytes} bytes, header needs {header_bytes + 8}"
                )
            if header_bytes > _MAX_HEADER_BYTES:
                raise ModelError(path, f"header of {header_bytes} bytes, at most 100 MB")
            raw = file.read(header_bytes)
    except OSError as error:
        raise ModelError(path, f"cannot be read: {error.strerror}") from error
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelError(path, f"header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise ModelError(path, "header is not a JSON object")
    header.pop("__metadata__", None)
    begin = 8 + header_bytes
    tensors = {name: _tensor(path, name, entry, begin) for name, entry in header.items()}
    _check_layout(path, tensors, begin, file_bytes)
    return tensors


def _tensor(path: Path, name: str, entry: Any, begin: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise ModelError(path, f"tensor {name}: entry is not an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ModelError(path, f"tensor {name}: dtype {dtype!r}, allowed: {', '.join(DTYPE_BYTES)}")
    if not _are_sizes(shape):
        raise ModelError(path, f"tensor {name}: shape is {shape!r}, allowed: a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ModelError(path, f"tensor {name}: data_offsets is {offsets!r}, allowed: [begin, end]")
    size = prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != size:
        raise ModelError(
            path, f"tensor {name}: {offsets[1] - offsets[0]} bytes, but {dtype} {shape} is {size}"
        )
    return TensorInfo(dtype, tuple(shape), path, begin + offsets[0], begin + offsets[1])


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
        for value in values
    )


def _check_layout(path: Path, tensors: dict[str, TensorInfo], begin: int, file_bytes: int) -> None:
    """The tensors fill the file from `begin` to its end, without hole or overlap."""
    end = begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != end:
            what = (
                "overlaps the tensor before it" if info.begin < end else "leaves a hole before it"
            )
            raise ModelError(path, f"tensor {name} {what}")
        end = info.end
    if end != file_bytes:
        what = "truncated" if end > file_bytes else "too long"
        raise ModelError(path, f"{what}: {file_bytes} bytes, its tensors end at {end}")
