"""Times on any device: on a GPU the device's own clock over a recorded CUDA graph, so that what the
host needs to launch kernels does not count; elsewhere the host's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

__all__ = ["copy_gb_per_s", "median_ms"]

_WARM_UPS = 3


def median_ms(function: Callable[[], object], device: torch.device, *, repeats: int = 30) -> float:
    """The median time of a call. On a GPU `function` must be recordable: nothing that waits."""
    if device.type != "cuda":
        return _median(_host_times(function, repeats))
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            function()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        function()
    graph.replay()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    for begin, end in events:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize(device)
    return _median([begin.elapsed_time(end) for begin, end in events])


def _host_times(function: Callable[[], object], repeats: int) -> list[float]:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def copy_gb_per_s(device: torch.device, *, num_bytes: int = 2**30, repeats: int = 30) -> float:
    """Bytes read and written per second by a copy, in GB/s."""
    source = torch.ones(num_bytes // 4, device=device)
    destination = torch.empty_like(source)
    ms = median_ms(lambda: destination.copy_(source), device, repeats=repeats)
    return 2 * source.nbytes / ms / 1e6
