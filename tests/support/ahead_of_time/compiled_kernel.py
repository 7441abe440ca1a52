"""What a compiled Triton kernel needs of a GPU, read from its binary and its intermediate forms."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

from ahead_of_time.addressing import narrow_products

__all__ = ["CompiledKernel", "examine"]

_DOT = re.compile(r"\b(?:tt\.dot|warp_group_dot) .* : (.*) \* (.*) -> tensor<[^#>]*(#\w+)")
_SMALL_ELEMENT = re.compile(r"x(?:f16|bf16|i8|f8\w*)\b")
_TENSOR_CORE_INSTRUCTION = re.compile(r"\b(wgmma\.mma_async|mma\.sync)\b")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledKernel:
    """One kernel, compiled for one call.

    kernel: "module.function"; launcher: the public function that started it; case: the call
    key: equal for equal compiled kernels
    registers: per thread; stack_bytes: per thread, for what did not fit into registers
    shared_bytes: per block, all of it dynamic
    dots: matrix products; slow_dots: those not on tensor cores, or there with 32-bit operands
    is_16_bit: whether it works on float16 or bfloat16 tensors (scales do not count)
    tensor_cores: the tensor-core instruction in the PTX, or ""
    narrow_products: lines of Triton IR that multiply a stride in 32 bits
    """

    kernel: str
    launcher: str
    case: str
    key: str
    sm: int
    num_warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    dots: int
    slow_dots: int
    is_16_bit: bool
    tensor_cores: str
    narrow_products: tuple[str, ...]
    seconds: float


def examine(compiled: Any, *, launcher: str, case: str, seconds: float) -> CompiledKernel:
    """compiled: what `JITFunction.warmup` returned, for a CUDA target."""
    registers, stack_bytes = _resource_usage(compiled.asm["cubin"])
    dots, slow_dots = _dots(compiled.asm["ttgir"])
    instruction = _TENSOR_CORE_INSTRUCTION.search(compiled.asm["ptx"])
    function = compiled.src.fn
    return CompiledKernel(
        kernel=f"{function.__module__}.{function.__name__}",
        launcher=launcher,
        case=case,
        key=compiled.hash,
        sm=compiled.metadata.target.arch,
        num_warps=compiled.metadata.num_warps,
        registers=registers,
        stack_bytes=stack_bytes,
        shared_bytes=compiled.metadata.shared,
        dots=dots,
        slow_dots=slow_dots,
        is_16_bit=_is_16_bit(compiled.src.signature),
        tensor_cores=instruction.group(1) if instruction else "",
        narrow_products=tuple(narrow_products(compiled.asm["ttir"])),
        seconds=seconds,
    )


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes per thread."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usages = _USAGE.findall(report)
    # functions that were not inlined are listed too; what they need counts
    assert usages, f"cuobjdump reported no function: {report}"
    return max(int(r) for r, _ in usages), max(int(s) for _, s in usages)


def _dots(ttgir: str) -> tuple[int, int]:
    """How many matrix products there are, and how many are not 16-bit ones on tensor cores."""
    tensor_core_layouts = set(re.findall(r"^(#\w+) = #ttg\.nvidia_mma<", ttgir, re.MULTILINE))
    dots = _DOT.findall(ttgir)
    fast = [
        layout
        for *operands, layout in dots
        if layout in tensor_core_layouts and all(_SMALL_ELEMENT.search(o) for o in operands)
    ]
    return len(dots), len(dots) - len(fast)


def _is_16_bit(signature: dict[str, Any]) -> bool:
    return any(
        kind in ("*fp16", "*bf16") and "scale" not in name for name, kind in signature.items()
    )
