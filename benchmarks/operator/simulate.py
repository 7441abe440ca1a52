"""The operator's scaling formula beside others', on simulated pods with a queue each.

    .venv/bin/python benchmarks/operator/simulate.py [--seeds 5] [--json FILE] [--plot FILE]

Two hours of Poisson arrivals per run; answers take 21 s on average without waiting. Means over the
seeds; each policy gets the same arrivals. `service.py` and `policies.py` say what is simulated.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from policies import POLICIES
from service import DURATION_S, Outcome, Profile, Spreading, run

sys.path.insert(0, str(Path(__file__).parents[1] / "plot"))

import svg

SPREADINGS: tuple[Spreading, ...] = ("least-loaded", "random")
PLOTTED = "step"


def _step(low: float, high: float, at: float = 1200.0):
    return lambda second: high if second >= at else low


def _sine(low: float, high: float, period: float = 3600.0):
    middle, swing = (low + high) / 2, (high - low) / 2
    return lambda second: middle - swing * math.cos(2 * math.pi * second / period)


def _bursts(second: float) -> float:
    """Two minutes in every fifteen."""
    return 4.0 if 300 <= second % 900 < 420 else 0.3


def _busy_then_idle(second: float) -> float:
    return 2.0 if second < 900 else 0.02


PROFILES = (
    Profile(name="step", rate=_step(0.5, 2.6), peak=2.6),
    Profile(name="sine", rate=_sine(0.2, 2.8), peak=2.8),
    # a pod says 64 and its KV cache holds 6
    Profile(name="step, KV-bound", rate=_step(0.2, 1.6), peak=1.6, capacity=6, max_running=64),
    Profile(name="sine, 60 s load", rate=_sine(0.2, 2.8), peak=2.8, load_s=60.0),
    Profile(name="bursts", rate=_bursts, peak=4.0),
    Profile(name="long idle", rate=_busy_then_idle, peak=2.0),
)


def summary(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Means over the seeds."""
    outcomes = list(outcomes)
    waits = [sorted(outcome.waits) for outcome in outcomes]
    return {
        "flips": mean(outcome.flips for outcome in outcomes),
        "peak": mean(outcome.peak for outcome in outcomes),
        "gpu_hours": mean(outcome.pod_seconds / 3600 for outcome in outcomes),
        "wait_p50_s": mean(_percentile(each, 0.5) for each in waits),
        "wait_p95_s": mean(_percentile(each, 0.95) for each in waits),
        "unfinished": mean(outcome.unfinished for outcome in outcomes),
        "cut": sum(outcome.cut for outcome in outcomes),
    }


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def print_table(spreading: Spreading, rows: dict[tuple[str, str], dict[str, float]]) -> None:
    print(f"\nrequests spread {spreading}")
    heads = ("flips", "peak", "GPU-h", "wait p50", "wait p95", "unfinished", "cut")
    print(f"{'profile':<17}{'policy':<24}" + "".join(f"{head:>11}" for head in heads))
    before = ""
    for (profile, policy), row in rows.items():
        cells = [f"{row[key]:.1f}" for key in ("flips", "peak", "gpu_hours")]
        cells += [f"{row[key]:.1f} s" for key in ("wait_p50_s", "wait_p95_s")]
        cells += [f"{row['unfinished']:.1f}", f"{row['cut']:.0f}"]
        shown = profile if profile != before else ""
        print(f"{shown:<17}{policy:<24}" + "".join(f"{cell:>11}" for cell in cells))
        before = profile


def plot(path: Path, traces: dict[str, Outcome]) -> None:
    """Waiting requests and Ready pods over time, one line per policy."""
    minutes = {
        name: [second / 60 for second, *_ in outcome.trace] for name, outcome in traces.items()
    }

    def lines(column: int) -> list[svg.Line]:
        return [
            svg.Line(name, minutes[name], [float(row[column]) for row in outcome.trace])
            for name, outcome in traces.items()
        ]

    title = f"Simulated: {PLOTTED}, 0.5 to 2.6 requests/s after 20 minutes, pods load for 240 s"
    panels = [svg.Panel("waiting requests", lines(1)), svg.Panel("pods, also loading", lines(3))]
    path.write_text(svg.chart(title, "minutes", panels, end=DURATION_S / 60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the table's numbers here")
    parser.add_argument("--plot", type=Path, help="write the step's queues and counts here (SVG)")
    args = parser.parse_args()
    results: dict[str, list[dict[str, object]]] = {}
    traces: dict[str, Outcome] = {}
    for spreading in SPREADINGS:
        rows: dict[tuple[str, str], dict[str, float]] = {}
        for profile in PROFILES:
            for policy in POLICIES:
                outcomes = [
                    run(profile, policy(), spreading, 100 + seed) for seed in range(args.seeds)
                ]
                rows[profile.name, policy.name] = summary(outcomes)
                if profile.name == PLOTTED and spreading == "least-loaded":
                    traces[policy.name] = outcomes[0]
        print_table(spreading, rows)
        results[spreading] = [
            {"profile": profile, "policy": policy, **row} for (profile, policy), row in rows.items()
        ]
    if args.json:
        args.json.write_text(json.dumps({"seeds": args.seeds, **results}, indent=1) + "\n")
    if args.plot:
        plot(args.plot, traces)


if __name__ == "__main__":
    main()
