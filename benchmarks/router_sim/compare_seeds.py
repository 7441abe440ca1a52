"""Two policies beside each other over several seeds: is a difference more than chance?

    .venv/bin/python benchmarks/router_sim/compare_seeds.py efficient watermark --seeds 2 3 4 5 6

Per load and rate: by how many per cent the first policy serves more than the second, as the mean
over the seeds with its standard error; both get the same requests of each seed.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from dataclasses import replace

from loads import LOADS
from policies import POLICIES
from run import commit_id, quick, simulate
from summary import Summary


def ahead(first: float, second: float) -> float:
    """Per cent."""
    return 100 * (first / second - 1)


def mean_and_error(values: list[float]) -> str:
    """The standard error of the mean needs two values."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    return f"{mean:+.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", nargs=2, choices=POLICIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    parser.add_argument("--load", nargs="+", choices=[load.name for load in LOADS])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    first, second = args.policy
    print(f"commit {commit_id()}, seeds {args.seeds}: {first} ahead of {second}, per cent")
    print(f"  {'':<24}{'goodput':>18}{'req/s':>18}{'preemptions':>18}")
    for load in LOADS:
        if args.load and load.name not in args.load:
            continue
        shown = quick(load) if args.quick else load
        for rate in shown.rates:
            pairs: list[list[Summary]] = []
            for seed in args.seeds:
                runs = simulate(replace(shown, rates=(rate,)), policies=args.policy, seed=seed)
                pairs.append([run.summary for run in runs])
            goodput = mean_and_error([ahead(a.goodput, b.goodput) for a, b in pairs])
            served = mean_and_error([ahead(a.requests_per_s, b.requests_per_s) for a, b in pairs])
            preempted = " / ".join(
                str(sum(s.preemptions for s in one)) for one in zip(*pairs, strict=True)
            )
            label = f"{load.name}, {rate:g}/s"
            print(f"  {label:<24}{goodput:>18}{served:>18}{preempted:>18}", flush=True)


if __name__ == "__main__":
    main()
