"""What a run is worth: throughput, goodput under the targets, waste, the scheduler's own time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from loads import Requests
from simulation import Outcome

__all__ = ["TARGETS", "Summary", "Targets", "summarise"]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a client must get, in seconds: the first token, each further token on average, and the
    longest wait for any of them."""

    ttft: float = 10.0
    mean_tpot: float = 0.1
    longest_gap: float = 1.5

    def __str__(self) -> str:
        return (
            f"TTFT ≤ {self.ttft:g} s, mean TPOT ≤ {1e3 * self.mean_tpot:g} ms, "
            f"no gap > {self.longest_gap:g} s"
        )


# TTFT and the bound on the gaps are those of the Past-Future paper for 7B models
TARGETS = Targets()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """requests_per_s, tokens_per_s: from the first arrival to the last end, in virtual seconds.

    goodput: requests/s that arrive and are served within the targets. slots_used: share of the
    slots, mean over the steps. cpu_ms: plan and commit of a step.
    """

    requests_per_s: float
    tokens_per_s: float
    goodput: float
    within_targets: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_ms: float
    gap_p99_s: float
    preemptions: int
    recomputed_tokens: int
    slots_used: float
    max_rows: int
    steps: int
    cpu_ms_p50: float
    cpu_ms_p99: float


def summarise(requests: Requests, outcome: Outcome, targets: Targets = TARGETS) -> Summary:
    """All requests have finished."""
    span = float(requests.arrivals[-1] - requests.arrivals[0])
    ttft = outcome.first - requests.arrivals
    tpot = (outcome.last - outcome.first) / np.maximum(outcome.generated - 1, 1)
    good = (ttft <= targets.ttft) & (tpot <= targets.mean_tpot)
    good &= outcome.longest_gap <= targets.longest_gap
    return Summary(
        requests_per_s=len(requests) / outcome.seconds,
        tokens_per_s=int(outcome.generated.sum()) / outcome.seconds,
        goodput=int(good.sum()) / span,
        within_targets=float(good.mean()),
        ttft_p50_s=float(np.percentile(ttft, 50)),
        ttft_p99_s=float(np.percentile(ttft, 99)),
        tpot_p50_ms=1e3 * float(np.percentile(tpot, 50)),
        gap_p99_s=float(np.percentile(outcome.longest_gap, 99)),
        preemptions=outcome.preemptions,
        recomputed_tokens=outcome.recomputed_tokens,
        slots_used=float(np.mean(outcome.slots_used)),
        max_rows=outcome.max_rows,
        steps=outcome.steps,
        cpu_ms_p50=float(np.percentile(outcome.cpu_ms, 50)),
        cpu_ms_p99=float(np.percentile(outcome.cpu_ms, 99)),
    )
