"""What the engine resolved at start: written once by the router, read by the api.

The file `engine.json` appears in the run directory before the router's row turns READY.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

__all__ = ["EngineInfo", "read_engine_info", "write_engine_info"]

_NAME = "engine.json"


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of the running engine; lengths and counts in tokens, sizes in bytes."""

    family: str
    architecture: str
    device: str
    dtype: str
    weight_dtype: str
    kv_dtype: str
    kv_dtype_reason: str
    tp: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    max_total_token_num: int
    max_req_total_len: int
    running_max_req_size: int
    batch_max_tokens: int
    kv_bytes_per_token: int
    weight_bytes: int
    versions: dict[str, str]


def write_engine_info(run_dir: Path, info: EngineInfo) -> None:
    """Write atomically, so that a reader sees all of it or nothing."""
    temporary = run_dir / f".{_NAME}"
    temporary.write_bytes(msgspec.json.encode(info))
    os.replace(temporary, run_dir / _NAME)


def read_engine_info(run_dir: Path) -> EngineInfo:
    """Raise FileNotFoundError before the router has written it."""
    return msgspec.json.decode((run_dir / _NAME).read_bytes(), type=EngineInfo)
