"""Admission policies beside each other: the real scheduler on a modelled GPU, in virtual time.

    .venv/bin/python benchmarks/router_sim/run.py [--quick] [--load NAME …] [--json FILE] …

`loads.py`, `device.py` and `policies.py` say what is simulated, `summary.py` what is counted. Every
policy gets the same requests. Losses are printed like gains.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from loads import LOADS, Load, Requests
from policies import POLICIES
from simulation import Outcome, Simulation
from summary import TARGETS, Summary, summarise

sys.path.insert(0, str(Path(__file__).parents[1] / "plot"))

import svg

QUICK_SECONDS = 6.0
# a quick run has a small cache, which few requests fill
_QUICK_SHARE = 16
HEADS = (
    ("req/s", lambda s: f"{s.requests_per_s:.1f}"),
    ("tok/s", lambda s: f"{s.tokens_per_s:.0f}"),
    ("goodput", lambda s: f"{s.goodput:.1f}"),
    ("in targets", lambda s: f"{s.within_targets:.0%}"),
    ("TTFT p50", lambda s: f"{s.ttft_p50_s:.2f} s"),
    ("p99", lambda s: f"{s.ttft_p99_s:.2f} s"),
    ("TPOT p50", lambda s: f"{s.tpot_p50_ms:.0f} ms"),
    ("gap p99", lambda s: f"{s.gap_p99_s:.2f} s"),
    ("preempted", lambda s: f"{s.preemptions}"),
    ("recomputed", lambda s: f"{s.recomputed_tokens}"),
    ("slots", lambda s: f"{s.slots_used:.0%}"),
    ("rows", lambda s: f"{s.max_rows}"),
    ("CPU p50", lambda s: f"{s.cpu_ms_p50:.2f} ms"),
    ("p99", lambda s: f"{s.cpu_ms_p99:.2f} ms"),
)


@dataclass(frozen=True)
class Run:
    """One policy under one load at one rate of arrivals."""

    load: Load
    rate: float
    policy: str
    requests: Requests
    outcome: Outcome
    summary: Summary


def quick(load: Load) -> Load:
    """The same shape on a device with little cache, at the one rate that fills it."""
    device = replace(load.device, slots=load.device.slots // _QUICK_SHARE)
    return replace(load, device=device, rates=(load.rates[-1] / 4,), seconds=QUICK_SECONDS)


def simulate(
    load: Load,
    *,
    policies: Iterable[str] = tuple(POLICIES),
    seed: int = 1,
    check: bool = False,
) -> Iterator[Run]:
    """All rates, each with all `policies`. check: compare the scheduler's books after each turn."""
    for rate in load.rates:
        requests = load.requests(round(rate * load.seconds), rate, seed)
        for name in policies:
            policy = POLICIES[name](load.device.slots, requests)
            outcome = Simulation(requests, policy, load.device, check=check).run()
            yield Run(load, rate, name, requests, outcome, summarise(requests, outcome))


def print_runs(runs: Iterator[Run]) -> list[Run]:
    """A line each as soon as it is there; returns them."""
    done: list[Run] = []
    for run in runs:
        if not done or (done[-1].load, done[-1].rate) != (run.load, run.rate):
            lens, device = run.requests, run.load.device
            print(
                f"\n{run.load.name}, {run.rate:g} requests/s: {run.load.what}\n"
                f"  {len(lens)} requests in {run.load.seconds:g} s, "
                f"prompt {lens.prompt_lens.mean():.0f}, output {lens.output_lens.mean():.0f}, "
                f"limit {lens.limits.mean():.0f} tokens on average; "
                f"{device.name}, {device.slots} slots\n"
                f"  {'':<14}" + "".join(f"{head:>11}" for head, _ in HEADS)
            )
        cells = "".join(f"{show(run.summary):>11}" for _, show in HEADS)
        print(f"  {run.policy:<14}{cells}", flush=True)
        done.append(run)
    return done


def plot(runs: list[Run]) -> str:
    """Goodput of each policy, per load and rate, as a part of the oracle's; the SVG text."""
    groups: dict[str, svg.Group] = {}
    oracle = {
        (run.load.name, run.rate): run.summary.goodput for run in runs if run.policy == "oracle"
    }
    for run in runs:
        label = f"{run.load.name}, {run.rate:g}/s"
        group = groups.setdefault(label, svg.Group(label, {}))
        best = oracle[run.load.name, run.rate]
        group.values[run.policy] = 100 * run.summary.goodput / best if best else 0.0
    title = f"Simulated: goodput ({TARGETS})"
    return svg.bars(title, "per cent of the oracle's goodput", list(groups.values()))


def commit_id() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--seconds", type=float, help="of arrivals, instead of the loads' own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load", nargs="+", choices=[load.name for load in LOADS])
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--json", type=Path, help="write the table's numbers here")
    parser.add_argument("--plot", type=Path, help="write the goodputs here (SVG)")
    args = parser.parse_args()
    if args.plot and "oracle" not in args.policy:
        parser.error("--plot needs --policy oracle, since it shows parts of it")
    # every preemption is logged
    logging.disable(logging.INFO)
    loads = [load for load in LOADS if args.load is None or load.name in args.load]
    loads = [quick(load) for load in loads] if args.quick else loads
    if args.seconds:
        loads = [replace(load, seconds=args.seconds) for load in loads]
    devices = {load.device.name: load.device.figures() for load in loads}
    commit = commit_id()
    print(f"commit {commit}, seed {args.seed}; targets: {TARGETS}")
    for figures in devices.values():
        print("device: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    began = time.monotonic()
    runs = print_runs(
        run for load in loads for run in simulate(load, policies=args.policy, seed=args.seed)
    )
    total = sum(len(run.requests) for run in runs)
    print(f"\n{len(runs)} runs, {total} requests in {time.monotonic() - began:.0f} s")
    if args.json:
        rows = [
            {"load": run.load.name, "rate": run.rate, "policy": run.policy, **asdict(run.summary)}
            for run in runs
        ]
        head = {"commit": commit, "seed": args.seed}
        head |= {"targets": asdict(TARGETS), "devices": list(devices.values())}
        args.json.write_text(json.dumps({**head, "runs": rows}, indent=1) + "\n")
    if args.plot:
        args.plot.write_text(plot(runs))


if __name__ == "__main__":
    main()
