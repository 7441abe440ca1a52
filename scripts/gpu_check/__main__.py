"""`make gpu-check STAGE=kernels|engine|bench [DRY_RUN=1]`: one stage on this machine's GPU.

    python scripts/gpu_check STAGE [--dry-run]

Needs torch, triton, transformers and what `wheels.sh` fetches. Results go to $OUT, else to
docs/benchmarks. A dry run executes the same code on the CPU at tiny shapes, kernels in Triton's
interpreter, and keeps and prints no figure.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGES = ("kernels", "engine", "bench")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU; measures nothing")
    parser.add_argument("--only", default="", help="run only cases whose name contains this")
    args = parser.parse_args()
    if args.dry_run:
        # read when a kernel is defined, and no GPU may be used by mistake
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    sys.path[:0] = [str(ROOT / name) for name in ("kernels", "server", "benchmarks/serving")]
    import torch
    from cases import NOT_A_MEASUREMENT, STAGE_SECONDS, Results, run_cases
    from machine import describe

    device = torch.device("cpu" if args.dry_run else "cuda")
    if not args.dry_run and not torch.cuda.is_available():
        print("gpu-check: torch sees no GPU; DRY_RUN=1 runs the code without one", file=sys.stderr)
        return 1
    if args.dry_run:
        print(NOT_A_MEASUREMENT)
    stage = importlib.import_module(f"{args.stage.rstrip('s')}_cases")
    cases = [c for c in stage.make_cases(device, tiny=args.dry_run) if args.only in c.name]
    results = Results(args.stage, describe(device), args.dry_run)
    # a dry run has all the time it takes
    passed = run_cases(cases, results, seconds=math.inf if args.dry_run else STAGE_SECONDS)
    if args.dry_run:
        print(NOT_A_MEASUREMENT)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
