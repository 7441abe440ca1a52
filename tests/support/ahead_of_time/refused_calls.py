"""Calls that the gate must refuse, one per rule, and one without fault (`wide`)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ahead_of_time.call import Call
from lightllm_kernels.triton_launch import launch

__all__ = ["calls"]


@triton.jit
def _spilling_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    offs = tl.arange(0, SIZE)
    x = tl.load(x_ptr + offs)
    # needs all of x again after the maximum of all of x is known
    tl.store(out_ptr + offs, x - tl.max(x, axis=0))


@triton.jit
def _oversized_kernel(x_ptr, out_ptr, SIZE: tl.constexpr, STEPS: tl.constexpr):
    offs = tl.arange(0, SIZE)
    square = offs[:, None] * SIZE + offs[None, :]
    total = tl.zeros([SIZE, SIZE], tl.float32)
    for step in range(STEPS):
        x = tl.load(x_ptr + step * SIZE * SIZE + square)
        total += tl.dot(x, x)
    tl.store(out_ptr + square, total)


@triton.jit
def _upcast_dot_kernel(x_ptr, out_ptr, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    offs = tl.arange(0, SIZE)
    square = offs[:, None] * SIZE + offs[None, :]
    x = tl.load(x_ptr + square).to(tl.float32)
    tl.store(out_ptr + square, tl.dot(x, x, input_precision=PRECISION))


@triton.jit
def _narrow_kernel(x_ptr, slots_ptr, out_ptr, stride_x_slot, BLOCK: tl.constexpr):
    slot = tl.load(slots_ptr + tl.program_id(0))
    offs = tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, tl.load(x_ptr + slot * stride_x_slot + offs))


@triton.jit
def _wide_kernel(x_ptr, slots_ptr, out_ptr, stride_x_slot, BLOCK: tl.constexpr):
    slot = tl.load(slots_ptr + tl.program_id(0)).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, tl.load(x_ptr + slot * stride_x_slot + offs))


def spilling(x: torch.Tensor, out: torch.Tensor) -> None:
    launch(_spilling_kernel, (1,), x, out, SIZE=4096, num_warps=1, maxnreg=32)


def oversized(x: torch.Tensor, out: torch.Tensor) -> None:
    launch(_oversized_kernel, (1,), x, out, SIZE=128, STEPS=32, num_warps=8, num_stages=10)


def without_tensor_cores(x: torch.Tensor, out: torch.Tensor) -> None:
    launch(_upcast_dot_kernel, (1,), x, out, SIZE=16, PRECISION="ieee", num_warps=1)


def upcast(x: torch.Tensor, out: torch.Tensor) -> None:
    launch(_upcast_dot_kernel, (1,), x, out, SIZE=16, PRECISION="tf32", num_warps=1)


def narrow(x: torch.Tensor, slots: torch.Tensor, out: torch.Tensor) -> None:
    launch(_narrow_kernel, (1,), x, slots, out, x.stride(0), BLOCK=128)


def wide(x: torch.Tensor, slots: torch.Tensor, out: torch.Tensor) -> None:
    launch(_wide_kernel, (1,), x, slots, out, x.stride(0), BLOCK=128)


def raising(x: torch.Tensor, out: torch.Tensor) -> None:
    """Reads a number from the device, as no launcher may."""
    launch(_wide_kernel, (int(x[0, 0].item()),), x, x, out, 1, BLOCK=128)


def calls(sm: int) -> list[Call]:
    """The same for each `sm`."""
    x = torch.empty(4096, 128, dtype=torch.float16, device="meta")
    slots = torch.empty(8, dtype=torch.int32, device="meta")
    return [
        *(
            Call(f, "", lambda: ((x, x), {}))
            for f in (spilling, oversized, without_tensor_cores, upcast, raising)
        ),
        *(Call(f, "", lambda: ((x, slots, x), {})) for f in (narrow, wide)),
    ]
