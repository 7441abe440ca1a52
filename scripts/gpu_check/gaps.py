"""Where the GPU waits between kernels, from torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def step_gaps(turn: Callable[[], object], turns: int, device: torch.device) -> dict[str, Any]:
    """Turns of a loop: the longest gap between device activities in µs, the share of the
    time without any, and how many gaps exceed 100 µs.
    """
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if is_cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        for _ in range(turns):
            turn()
        if is_cuda:
            torch.cuda.synchronize()
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if not is_cuda or event.device_type == torch.autograd.DeviceType.CUDA
    ]
    if not spans:
        raise RuntimeError("the profiler saw nothing on the device")
    return gaps_between(spans)


def gaps_between(spans: list[tuple[float, float]]) -> dict[str, Any]:
    """spans: begin and end in µs, in any order, may overlap."""
    gaps, busy_until, begin = [], None, 0.0
    for start, end in sorted(spans):
        if busy_until is None:
            begin, busy_until = start, start
        gaps.append(max(0.0, start - busy_until))
        busy_until = max(busy_until, end)
    total = (busy_until or 0.0) - begin
    return {
        "longest_gap_us": round(max(gaps, default=0.0), 1),
        "gaps_over_100_us": sum(gap > 100 for gap in gaps),
        "idle_share": round(sum(gaps) / total, 4) if total else 0.0,
    }
