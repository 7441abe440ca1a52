"""The rules that a compiled kernel must keep, and the few exceptions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ahead_of_time.compiled_kernel import CompiledKernel

__all__ = ["ALLOWED_STACKS", "SHARED_BYTES", "AllowedStack", "problems", "unused_exceptions"]

# what one block may have (CUDA C++ programming guide, compute capabilities): 227 KiB on sm_90; 163
# on sm_80, but 99 on sm_86, sm_89 and sm_120, which use its block sizes. Triton compiles larger
# requests without a word, and they fail at the first launch
SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024}


@dataclass(frozen=True, slots=True)
class AllowedStack:
    """A kernel that may keep up to `stack_bytes` per thread outside its registers."""

    kernel: str
    stack_bytes: int
    reason: str


# at most three
ALLOWED_STACKS: tuple[AllowedStack, ...] = (
    AllowedStack(
        "lightllm_kernels.decode_attention._decode_split_kernel",
        8,
        "soft cap, int8 KV and head dim 256 together want two registers more than 128 on sm_90",
    ),
)


def problems(
    row: CompiledKernel, allowed_stacks: Iterable[AllowedStack] = ALLOWED_STACKS
) -> list[str]:
    """What is wrong with one compiled kernel, in words; empty if nothing is."""
    found = []
    if row.shared_bytes > SHARED_BYTES[row.sm]:
        found.append(f"shared memory {row.shared_bytes} > {SHARED_BYTES[row.sm]} bytes")
    if row.stack_bytes > _allowed_stack(row.kernel, allowed_stacks):
        found.append(f"spills: a stack of {row.stack_bytes} bytes per thread")
    if row.is_16_bit and row.slow_dots:
        found.append(f"{row.slow_dots} of {row.dots} dots are not 16-bit ones on tensor cores")
    if row.is_16_bit and row.dots and not row.tensor_cores:
        found.append("dots without a tensor-core instruction in the PTX")
    found += [f"32-bit product of a stride: {line}" for line in row.narrow_products]
    return found


def unused_exceptions(
    rows: Iterable[CompiledKernel], allowed_stacks: Iterable[AllowedStack] = ALLOWED_STACKS
) -> list[str]:
    """Exceptions that no compiled kernel needs any more."""
    spilling = {row.kernel for row in rows if row.stack_bytes}
    return [
        f"{a.kernel} no longer spills: take its exception out"
        for a in allowed_stacks
        if a.kernel not in spilling
    ]


def _allowed_stack(kernel: str, allowed_stacks: Iterable[AllowedStack]) -> int:
    return next((a.stack_bytes for a in allowed_stacks if a.kernel == kernel), 0)
