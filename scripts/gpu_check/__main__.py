"""`make gpu-check STAGE=kernels|engine|bench [DRY_RUN=1]`: one stage on this machine's GPU.

    python scripts/gpu_check STAGE [--dry-run]

Needs torch, triton, transformers and what `wheels.sh` fetches. Results go to $OUT, else to
docs/benchmarks. A dry run executes the same code on the CPU at tiny shapes, kernels in Triton's
interpreter, and keeps and prints no figure.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cases import NOT_A_MEASUREMENT, Results
from supervise import NO_LIMITS, Limits, Stage

ROOT = Path(__file__).parents[2]
STAGES = ("kernels", "engine", "bench")
PATHS = (
    "kernels",
    "server",
    "benchmarks/serving",
    "benchmarks/workloads",
    "benchmarks/kernels",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU; measures nothing")
    parser.add_argument("--only", default="", help="run only cases whose name contains this")
    # how the parent starts a worker
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--failed", default="", help=argparse.SUPPRESS)
    parser.add_argument("--report", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dry_run:
        # read when a kernel is defined, and no GPU may be used by mistake
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    if args.report is not None:
        status = run_worker(args)
        sys.stdout.flush()
        sys.stderr.flush()
        # without the end of a thread or of a GPU's context, which a failed case may have broken
        os._exit(status)
    if args.dry_run:
        print(NOT_A_MEASUREMENT, flush=True)
    command = [sys.executable, str(Path(__file__).parent), args.stage, "--only", args.only]
    command += ["--dry-run"] if args.dry_run else []
    # a dry run has all the time it takes
    limits = NO_LIMITS if args.dry_run else Limits()
    results = Results(args.stage, args.dry_run, args.only)
    passed = Stage(command, results, limits).run()
    print(results.summary())
    if args.dry_run:
        print(NOT_A_MEASUREMENT)
    return 0 if passed else 1


def run_worker(args: argparse.Namespace) -> int:
    sys.path[:0] = [str(ROOT / name) for name in PATHS]
    import torch
    from worker import work

    if not args.dry_run and not torch.cuda.is_available():
        print("gpu-check: torch sees no GPU; DRY_RUN=1 runs the code without one", file=sys.stderr)
        return 1
    return work(
        args.stage,
        dry_run=args.dry_run,
        only=args.only,
        first=args.first,
        failed={int(number) for number in args.failed.split(",") if number},
        report=args.report,
    )


if __name__ == "__main__":
    sys.exit(main())
