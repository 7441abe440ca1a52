"""Headers are read exactly; whatever is wrong with a file is one ModelError that names it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lightllm_server.errors import ModelError
from lightllm_server.models.safetensors_header import read_headers

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def write(path: Path, header: Any, data_bytes: int, *, header_bytes: int | None = None) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if header_bytes is None else header_bytes
    path.write_bytes(struct.pack("<Q", size) + raw + bytes(data_bytes))


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_single_file_as_the_library_writes_it(tmp_path: Path) -> None:
    tensors = {"a": np.ones((2, 3), np.float32), "b": np.ones((5,), np.float16)}
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    found = read_headers(tmp_path)
    assert {name: (info.dtype, info.shape) for name, info in found.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F16", (5,)),
    }
    data = (tmp_path / SINGLE).read_bytes()
    for name, info in found.items():
        assert info.file == tmp_path / SINGLE
        assert data[info.begin : info.end] == tensors[name].tobytes()


def sharded(path: Path, **changes: Any) -> None:
    save_file({"a": np.ones(2, np.float32)}, path / "one.safetensors")
    save_file({"b": np.ones(3, np.float32)}, path / "two.safetensors")
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"} | changes
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_sharded(tmp_path: Path) -> None:
    sharded(tmp_path)
    found = read_headers(tmp_path)
    assert {name: info.file.name for name, info in found.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }


@pytest.mark.parametrize(
    ("make", "file", "cause"),
    [
        (lambda p: None, "", "no weights"),
        (lambda p: (p / "pytorch_model.bin").write_bytes(b"x"), "", "no weights"),
        (lambda p: (p / SINGLE).write_bytes(b""), SINGLE, "truncated"),
        (lambda p: (p / SINGLE).write_bytes(b"\xff" * 100), SINGLE, "truncated"),
        (lambda p: write(p / SINGLE, b"{}", 0, header_bytes=50), SINGLE, "truncated"),
        (lambda p: write(p / SINGLE, b"{nonsense", 0), SINGLE, "not valid JSON"),
        (lambda p: write(p / SINGLE, b"\xff\xff", 0), SINGLE, "not valid JSON"),
        (lambda p: write(p / SINGLE, b"[" * 200_000, 0), SINGLE, "not valid JSON"),
        (lambda p: write(p / SINGLE, [], 0), SINGLE, "not a JSON object"),
        (lambda p: write(p / SINGLE, {"a": 1}, 0), SINGLE, "tensor a: entry"),
        (lambda p: write(p / SINGLE, {"a": entry(0, 8, [2], "Q4")}, 8), SINGLE, "dtype 'Q4'"),
        (lambda p: write(p / SINGLE, {"a": entry(0, 8, [-2])}, 8), SINGLE, "tensor a: shape"),
        (lambda p: write(p / SINGLE, {"a": entry(8, 0, [2])}, 8), SINGLE, "tensor a: -8 bytes"),
        (lambda p: write(p / SINGLE, {"a": entry(0, 4, [2])}, 8), SINGLE, "tensor a: 4 bytes"),
        (lambda p: write(p / SINGLE, {"a": entry(0, 8, [2])}, 7), SINGLE, "truncated: "),
        (lambda p: write(p / SINGLE, {"a": entry(0, 8, [2])}, 9), SINGLE, "too long"),
        (lambda p: write(p / SINGLE, {"a": entry(4, 12, [2])}, 12), SINGLE, "hole before"),
        (
            lambda p: write(p / SINGLE, {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12),
            SINGLE,
            "tensor b overlaps",
        ),
        (lambda p: sharded(p, b="three.safetensors"), "three.safetensors", "missing shard"),
        (lambda p: sharded(p, c="one.safetensors"), INDEX, "tensor c is not in one"),
        (lambda p: sharded(p, b="one.safetensors"), INDEX, "tensor b is not in one"),
        (lambda p: sharded(p, b="../two.safetensors"), INDEX, "allowed: a file name"),
        (lambda p: sharded(p, b="two.bin"), INDEX, r"allowed: \*.safetensors"),
        (lambda p: (p / INDEX).write_text("{}"), INDEX, "weight_map is not"),
        (lambda p: (p / INDEX).write_text("{"), INDEX, "not valid JSON"),
    ],
)
def test_refusals(tmp_path: Path, make: Callable[[Path], Any], file: str, cause: str) -> None:
    make(tmp_path)
    with pytest.raises(ModelError, match=cause) as error:
        read_headers(tmp_path)
    assert error.value.path == str(tmp_path / file)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    tensors = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}
    save_file(tensors, tmp_path / "two.safetensors")
    with pytest.raises(ModelError, match=r"two\.safetensors: tensor a is also in one"):
        read_headers(tmp_path)


def test_tensor_that_the_index_does_not_name(tmp_path: Path) -> None:
    sharded(tmp_path)
    tensors = {"b": np.ones(2, np.float32), "x": np.ones(3, np.float32)}
    save_file(tensors, tmp_path / "two.safetensors")
    with pytest.raises(ModelError, match=r"two\.safetensors: tensor x is not in model"):
        read_headers(tmp_path)
