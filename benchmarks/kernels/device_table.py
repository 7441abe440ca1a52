"""One row per op and shape: its time and that of its peers, beside what a copy moves there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from device_time import copy_gb_per_s, median_ms
from measure import require_passing, row_of

__all__ = ["DeviceTable", "test_and_run"]


class DeviceTable:
    """Collects rows; `tiny`: as few calls as run the code, which measures nothing."""

    def __init__(self, device: str, tiny: bool) -> None:
        self._device, self._repeats = torch.device(device), 1 if tiny else 30
        num_bytes = 2**12 if tiny else 2**30
        self._copy = copy_gb_per_s(self._device, num_bytes=num_bytes, repeats=self._repeats)
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        num_bytes: int,
        ours: Callable[[], object],
        peers: Mapping[str, Callable[[], object]],
    ) -> None:
        """num_bytes: what the op has to read and write."""

        def measure() -> dict[str, Any]:
            row = {f"{label}_ms": self._ms(f) for label, f in {"ours": ours, **peers}.items()}
            gb_per_s = num_bytes / row["ours_ms"] / 1e6
            return {**row, "gb_per_s": gb_per_s, "share_of_copy": gb_per_s / self._copy}

        self.rows.append(row_of(name, measure))

    def _ms(self, function: Callable[[], object]) -> float:
        return median_ms(function, self._device, repeats=self._repeats)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """One line each: name, ms of ours and the peers, GB/s, share of the copy's."""
    for row in rows:
        if "error" in row:
            print(f"{row['name']:40s} {row['error']}", flush=True)
            continue
        times = "  ".join(f"{k[:-3]} {v:.4f} ms" for k, v in row.items() if k.endswith("_ms"))
        print(f"{row['name']:40s} {times}  {row['gb_per_s']:.0f} GB/s", end="")
        print(f"  {row['share_of_copy']:.0%} of a copy", flush=True)


def test_and_run(test: str, run: Callable[[str, bool], list[dict[str, Any]]]) -> None:
    """A benchmark: `run(device, tiny)` on a GPU, else only whether it runs; after its tests."""
    require_passing(test)
    with torch.inference_mode():
        if torch.cuda.is_available():
            print_rows(run("cuda", False))
        else:
            print(f"{len(run('cpu', True))} rows ran without a GPU: not a measurement")
