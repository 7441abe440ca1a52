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

import lightllm_kernels
import triton

from ahead_of_time import gate
from ahead_of_time.gate import Verdict

_HEADER = ("kernel", "call", "sm", "warps", "regs", "stack", "shared", "tensor cores", "s")


def _table(verdict: Verdict) -> str:
    lines = [_HEADER]
    for row in verdict.rows:
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


def _complaints(verdict: Verdict) -> list[str]:
    return [
        *(f"failed: {failure}" for failure in verdict.failures),
        *(f"not reached: {name}" for name in verdict.missing),
        *(
            f"refused: {row.kernel} by {row.launcher} ({row.case}, sm_{row.sm}): {problem}"
            for index, row in enumerate(verdict.rows)
            for problem in verdict.problems.get(index, [])
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="ahead_of_time", description=__doc__)
    parser.add_argument("--calls", default="ahead_of_time.calls", help="module with calls(sm)")
    parser.add_argument("--package", type=Path, help="its source, to see that nothing is left out")
    parser.add_argument("--json", type=Path, help="write the rows and complaints there")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    package = arguments.package or Path(lightllm_kernels.__file__).parent
    begin = time.perf_counter()
    rows, failures = gate.compile_calls(arguments.calls, processes=arguments.processes)
    verdict = gate.judge(rows, failures, package)
    complaints = _complaints(verdict)
    print(_table(verdict))
    print(
        f"\n{len(rows)} compiled kernels, triton {triton.__version__},"
        f" {time.perf_counter() - begin:.1f} s, {len(complaints)} complaints"
    )
    print("\n".join(complaints), file=sys.stderr)
    if arguments.json:
        kernels = [
            asdict(row) | {"problems": verdict.problems.get(index, [])}
            for index, row in enumerate(rows)
        ]
        result = {"kernels": kernels, "missing": verdict.missing, "failures": verdict.failures}
        arguments.json.write_text(json.dumps(result, indent=1))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
