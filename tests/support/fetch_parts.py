"""The unfinished files of a `lightllm-server fetch` that runs in another process."""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["parts_of", "wait_for_part"]


def parts_of(target: Path) -> dict[Path, int]:
    """With their sizes."""
    sizes = {}
    for part in target.glob(".fetch/parts/*.part"):
        try:
            sizes[part] = part.stat().st_size
        except FileNotFoundError:
            # finished meanwhile
            continue
    return sizes


def wait_for_part(target: Path, size: int, timeout: float = 30.0) -> Path:
    """The part, once one has that size."""
    deadline = time.monotonic() + timeout
    while True:
        for part, found in parts_of(target).items():
            if found == size:
                return part
        assert time.monotonic() < deadline, f"no part of {size} bytes: {parts_of(target)}"
        time.sleep(0.02)
