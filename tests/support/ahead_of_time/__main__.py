"""`python -m ahead_of_time`: compile every kernel for sm_80 and sm_90 on any machine, print what
each needs, and end with 1 if one breaks a rule or was not reached.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

# read when a kernel module is imported: its functions would not be compiled but interpreted
os.environ.pop("TRITON_INTERPRET", None)

import triton

import lightllm_kernels
from ahead_of_time import gate
from ahead_of_time.compiled_kernel import CompiledKernel
from ahead_of_time.gate import Outcome, Verdict

_HEADER = ("kernel", "call", "sm", "warps", "regs", "stack", "shared", "tensor cores", "s")


def _table(kernels: list[CompiledKernel]) -> str:
    lines = [_HEADER]
    for row in kernels:
        kernel = row.kernel.rpartition(".")[2].strip("_").removesuffix("_kernel")
        call = f"{row.launcher.rpartition('.')[2]} {row.case}".strip()
        numbers = (row.sm, row.num_warps, row.registers, row.stack_bytes, row.shared_bytes)
        cells = (*map(str, numbers), row.tensor_cores.partition(".")[0], f"{row.seconds:.1f}")
        lines.append((kernel, call, *cells))
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _complaints(outcome: Outcome, verdict: Verdict) -> list[str]:
    return [
        *(f"failed: {failure}" for failure in outcome.failures),
        *(f"not reached: {name}" for name in verdict.missing),
        *(
            f"refused: {kernel.kernel} by {kernel.launcher} ({kernel.case}, sm_{kernel.sm}): {p}"
            for index, kernel in enumerate(outcome.kernels)
            for p in verdict.problems.get(index, [])
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="ahead_of_time", description=__doc__)
    parser.add_argument("--calls", default="ahead_of_time.calls", help="module with calls(sm)")
    parser.add_argument("--only", help="calls whose launcher and case contain this")
    parser.add_argument("--package", type=Path, help="its source, to see that nothing is left out")
    parser.add_argument("--json", type=Path, help="write the rows and complaints there")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    package = arguments.package or Path(lightllm_kernels.__file__).parent
    begin = time.perf_counter()
    outcome = gate.compile_calls(
        arguments.calls, only=arguments.only or "", processes=arguments.processes
    )
    verdict = gate.judge(outcome, None if arguments.only else package)
    complaints = _complaints(outcome, verdict)
    print(_table(outcome.kernels))
    print(
        f"\n{len(outcome.kernels)} compiled kernels, triton {triton.__version__},"
        f" {time.perf_counter() - begin:.1f} s, {len(complaints)} complaints"
    )
    print("\n".join(complaints), file=sys.stderr)
    if arguments.json:
        kernels = [
            asdict(row) | {"problems": verdict.problems.get(index, [])}
            for index, row in enumerate(outcome.kernels)
        ]
        result = {"kernels": kernels, "missing": verdict.missing, "failures": outcome.failures}
        arguments.json.write_text(json.dumps(result, indent=1))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
