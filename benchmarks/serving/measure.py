"""What one round gives, and the statistics over rounds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One pass over the requests: wall seconds, and seconds per request for TTFT and TPOT."""

    seconds: float
    output_tokens: int
    ttft: list[float]
    tpot: list[float]

    @property
    def tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds


@dataclass(slots=True, kw_only=True)
class EngineResult:
    """All rounds of one engine and what was run."""

    name: str
    ours: bool
    quantised: bool
    command: str
    version: str
    dtype: str
    threads: int
    rounds: list[Round] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        """Output tokens per second, one value per round."""
        return [one.tokens_per_second for one in self.rounds]

    @property
    def median_speed(self) -> float:
        return statistics.median(self.speeds)

    def latency_ms(self, kind: str, percent: float) -> float:
        """The percentile over all requests of all rounds of `ttft` or `tpot`, in milliseconds."""
        values = [value for one in self.rounds for value in getattr(one, kind)]
        return 1000 * percentile(values, percent)


def percentile(values: list[float], percent: float) -> float:
    """Linear interpolation between the closest ranks."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def ratios(results: list[EngineResult]) -> dict[str, float]:
    """The two ratios of medians that the benchmark is about."""
    ours = [result for result in results if result.ours]
    peers = [result for result in results if not result.ours]

    def best(some: list[EngineResult]) -> float:
        return max(result.median_speed for result in some)

    return {
        "ratio_unquantised": best([result for result in ours if not result.quantised])
        / best([result for result in peers if not result.quantised]),
        "ratio_to_best_peer": best(ours) / best(peers),
    }
