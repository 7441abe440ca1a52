"""Decode steps recorded once and replayed: a step of B rows costs one launch instead of hundreds.

A recorded step reads and writes the same memory each time, so its inputs are written into place
before a replay and a batch is padded to the next size that was recorded. Padding rows belong to the
hold row of the request table, have one token and write to the pool's hold slot.
Lives here: sizes, the memory of inputs and outputs, padding. What a step computes is
`ModelShard`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from lightllm_server.engine.staging import Uploader
from lightllm_server.router.step_plan import StepPlan

__all__ = [
    "CudaRecorder",
    "DecodeGraphs",
    "EagerRecorder",
    "Recorder",
    "StaticStep",
    "graph_sizes",
    "is_pure_decode",
]

_SMALL_SIZES = (1, 2, 4, 8, 16)
# a row costs more the larger the batch, hence finer steps than doubling; above 128 one in 32 is
# little
_STEP, _LARGE, _LARGE_STEP = 16, 128, 32


def graph_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes to record, ascending; the last one is `max_batch_size`."""
    sizes = {*_SMALL_SIZES, *range(_STEP, _LARGE + 1, _STEP)}
    sizes |= set(range(_LARGE, max_batch_size + 1, _LARGE_STEP))
    return (*sorted(size for size in sizes if size < max_batch_size), max_batch_size)


def is_pure_decode(plan: StepPlan) -> bool:
    """Whether the plan decodes one token per row and does nothing else."""
    return (
        len(plan.decode_rows) > 0
        and not len(plan.token_ids)
        and not plan.starts
        and not plan.copies
        and np.array_equal(plan.sample_rows, plan.decode_rows)
    )


@dataclass(frozen=True, slots=True)
class StaticStep:
    """The memory of the steps of one size B; smaller sizes share it.

    rows, positions, slots: [B] int64, also as int32; seq_lens: [B] int32 = positions + 1;
    logits: [B, V] float32, the step's output.
    """

    packed: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    rows_int32: torch.Tensor
    seq_lens: torch.Tensor
    slots_int32: torch.Tensor
    logits: torch.Tensor

    @classmethod
    def over(cls, memory: torch.Tensor, logits: torch.Tensor, size: int) -> StaticStep:
        """memory: at least `num_bytes(size)` uint8; logits: at least [B, V]."""
        packed = memory[: cls.num_bytes(size)]
        wide = packed[: 24 * size].view(torch.int64).view(3, size)
        narrow = packed[24 * size :].view(torch.int32).view(3, size)
        return cls(packed, *wide.unbind(), *narrow.unbind(), logits[:size])

    @staticmethod
    def num_bytes(size: int) -> int:
        return size * 3 * (8 + 4)

    @property
    def size(self) -> int:
        return len(self.rows)


class Recording(Protocol):
    def replay(self) -> None:
        """Carry the step out again, in stream order."""
        ...


class Recorder(Protocol):
    """Turns a step into something to replay; the step must have run once before."""

    def warm_up(self, step: Callable[[], None]) -> None: ...

    def record(self, step: Callable[[], None]) -> Recording: ...


@dataclass(frozen=True, slots=True)
class _EagerReplay:
    step: Callable[[], None]

    def replay(self) -> None:
        self.step()


class EagerRecorder:
    """Runs the step itself at each replay: the same memory and padding without a GPU."""

    def warm_up(self, step: Callable[[], None]) -> None:
        step()

    def record(self, step: Callable[[], None]) -> Recording:
        return _EagerReplay(step)


class CudaRecorder:
    """CUDA graphs on one stream, sharing one memory pool: no two of them ever run at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]

    def warm_up(self, step: Callable[[], None]) -> None:
        """Compile kernels and make the workspaces of libraries, on the stream of the recording."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            step()
        self._stream.synchronize()

    def record(self, step: Callable[[], None]) -> Recording:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            step()
        return graph


class DecodeGraphs:
    """One recording per size.

    step: computes the logits of a StaticStep; run to warm up, then recorded. It must allocate
    nothing that outlives it.
    hold_row, hold_slot: what padding rows read and write; the slot may be set anew by `record`.
    """

    def __init__(
        self,
        step: Callable[[StaticStep], None],
        sizes: tuple[int, ...],
        *,
        vocab_size: int,
        hold_row: int,
        device: torch.device,
        uploader: Uploader,
    ) -> None:
        self._step = step
        self._uploader = uploader
        self._hold_row, self._hold_slot = hold_row, 0
        memory = torch.zeros(StaticStep.num_bytes(sizes[-1]), dtype=torch.uint8, device=device)
        logits = torch.zeros(sizes[-1], vocab_size, dtype=torch.float32, device=device)
        self._steps = [StaticStep.over(memory, logits, size) for size in sizes]
        self._recordings: dict[int, Recording] = {}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(step.size for step in self._steps)

    def record(self, recorder: Recorder, hold_slot: int, *, largest: int | None = None) -> None:
        """Record all sizes, or only the `largest` so many; forgets what was recorded before."""
        self._recordings.clear()
        self._hold_slot = hold_slot
        steps = self._steps[::-1][:largest]
        # all of them before the first recording: a workspace must not move under a graph
        for static in steps:
            self._fill(static, np.zeros((3, 0), np.int64))
            recorder.warm_up(lambda static=static: self._step(static))
        # the largest first: the others fit into the memory that it leaves
        for static in steps:
            self._recordings[static.size] = recorder.record(
                lambda static=static: self._step(static)
            )

    def forget(self) -> None:
        """Free the recordings."""
        self._recordings.clear()

    def fits(self, plan: StepPlan) -> bool:
        """Whether `replay` can carry the plan out."""
        return bool(self._recordings) and (
            len(plan.decode_rows) <= self._steps[-1].size and is_pure_decode(plan)
        )

    def replay(self, plan: StepPlan) -> StaticStep:
        """Carry a plan out that `fits`; what is returned is overwritten by the next replay.

        Rows beyond the plan's are padding.
        """
        num_rows = len(plan.decode_rows)
        static = next(static for static in self._steps if static.size >= num_rows)
        inputs = np.empty((3, num_rows), np.int64)
        inputs[0], inputs[1], inputs[2] = plan.decode_rows, plan.decode_positions, plan.slots
        self._fill(static, inputs)
        self._recordings[static.size].replay()
        return static

    def _fill(
        self, static: StaticStep, inputs: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    ) -> None:
        """inputs: [3, n] rows, positions, slots; the rest is padding."""
        size, num_rows = static.size, inputs.shape[1]
        packed = np.empty(static.num_bytes(size), np.uint8)
        wide = packed[: 24 * size].view(np.int64).reshape(3, size)
        wide[:, :num_rows] = inputs
        wide[:, num_rows:] = np.array([[self._hold_row], [0], [self._hold_slot]])
        narrow = packed[24 * size :].view(np.int32).reshape(3, size)
        narrow[:] = wide
        narrow[1] += 1
        self._uploader.write(static.packed, packed)
