"""The printed tables and the JSON file: both from the same numbers."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import EngineResult

OWED = {"ratio_unquantised": 1.3, "ratio_to_best_peer": 1.5}
AIMED = {"ratio_unquantised": 1.5, "ratio_to_best_peer": 2.0}


def cpu_name() -> str:
    """The processor as Linux names it, else the machine's architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def print_engines(results: list[EngineResult]) -> None:
    """One block per engine: what was run, then throughput and latencies."""
    for result in results:
        speeds = result.speeds
        print(f"\n{result.name}{'  (quantised)' if result.quantised else ''}")
        print(f"  command  {result.command}")
        print(f"  version  {result.version}   dtype {result.dtype}   threads {result.threads}")
        print(
            f"  output   {result.median_speed:7.1f} tokens/s median of {len(speeds)} rounds"
            f"  ({min(speeds):.1f} to {max(speeds):.1f})"
        )
        for kind in ("ttft", "tpot"):
            p50, p99 = (result.latency_ms(kind, percent) for percent in (50, 99))
            print(f"  {kind.upper()}     p50 {p50:8.1f} ms   p99 {p99:8.1f} ms")


def print_section(title: str, values: dict[str, float]) -> None:
    """A named group of figures."""
    print(f"\n{title}")
    for name, value in values.items():
        print(f"  {name.replace('_', ' '):36} {value:10.3f}")


def print_ratios(ratios: dict[str, float]) -> None:
    """The two lines that other tools read, with what is owed and aimed at beside them."""
    print()
    for name, value in ratios.items():
        print(f"{name}: {value:.2f}")
    for name, value in ratios.items():
        verdict = "met" if value >= OWED[name] else "MISSED"
        print(f"  {name}: owed {OWED[name]} ({verdict}), aim {AIMED[name]}")


def write_json(path: Path, results: list[EngineResult], **sections: Any) -> None:
    """Everything that was printed, and each round's raw numbers."""
    engines = [
        asdict(result)
        | {"tokens_per_second": result.speeds, "median_tokens_per_second": result.median_speed}
        for result in results
    ]
    document = {"cpu": cpu_name(), "engines": engines, **sections}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
