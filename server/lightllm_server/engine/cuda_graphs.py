"""Decode steps recorded once and replayed: a step of B rows costs one launch instead of hundreds.

A recorded step reads and writes the same memory each time, so its inputs are written into place
before a replay and a batch is padded to the next size that was recorded. Padding rows belong to the
hold row of the request table, have one token and write to the pool's hold slot.
Lives here: sizes, the memory of inputs and outputs, padding. What a step computes is
`ModelShard`'s.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
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
# a row costs more the larger the batch, hence finer steps than doubling: at most a fifth of a batch
# above 80 rows is padding
_RANGES = ((16, 128, 16), (128, 256, 32), (256, 4096, 64))


def graph_sizes(max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes to record, ascending; the last one is `max_batch_size`."""
    sizes = {*_SMALL_SIZES, *chain.from_iterable(range(*steps) for steps in _RANGES)}
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
    """The memory of the steps of one size B, which smaller sizes share.

    packed: all of the inputs, uint8
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
        rows, positions, slots = packed[: 24 * size].view(torch.int64).view(3, size).unbind()
        narrow = packed[24 * size :].view(torch.int32).view(3, size)
        return cls(
            packed=packed,
            rows=rows,
            positions=positions,
            slots=slots,
            rows_int32=narrow[0],
            seq_lens=narrow[1],
            slots_int32=narrow[2],
            logits=logits[:size],
        )

    @staticmethod
    def num_bytes(size: int) -> int:
        return size * 3 * (8 + 4)

    @property
    def size(self) -> int:
        """B."""
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

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()

    def with_new_pool(self) -> CudaRecorder:
        """The same stream, with whose workspaces libraries stay; memory apart from this one's."""
        return CudaRecorder(self._stream)

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
    hold_row: the row of the request table that padding belongs to.
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
        # ascending
        self.sizes = sizes
        self._recordings: dict[int, Recording] = {}

    def warm_up(self, recorder: Recorder, hold_slot: int) -> None:
        """Run every size once, before the first recording: scratch memory must not move under a
        graph. From now on padding is written to `hold_slot`.
        """
        self._hold_slot = hold_slot
        # the largest first: the others fit into the memory that it leaves
        for static in reversed(self._steps):
            self._fill(static, np.zeros((3, 0), np.int64))
            recorder.warm_up(partial(self._step, static))

    def record(self, recorder: Recorder, size: int) -> None:
        """Record one of `sizes`, the largest first for the same reason."""
        static = next(static for static in self._steps if static.size == size)
        self._recordings[size] = recorder.record(partial(self._step, static))

    def forget(self) -> None:
        """Free the recordings."""
        self._recordings.clear()

    def fits(self, plan: StepPlan) -> bool:
        """Whether `replay` can carry the plan out."""
        num_rows = len(plan.decode_rows)
        index = self._index(num_rows)
        return (
            index < len(self._steps)
            and self._steps[index].size in self._recordings
            and is_pure_decode(plan)
        )

    def replay(self, plan: StepPlan) -> StaticStep:
        """Carry a plan out that `fits`; what is returned is overwritten by the next replay.

        Rows beyond the plan's are padding.
        """
        num_rows = len(plan.decode_rows)
        static = self._steps[self._index(num_rows)]
        inputs = np.empty((3, num_rows), np.int64)
        inputs[0], inputs[1], inputs[2] = plan.decode_rows, plan.decode_positions, plan.slots
        self._fill(static, inputs)
        self._recordings[static.size].replay()
        return static

    def _index(self, num_rows: int) -> int:
        """Which step is the smallest that holds so many rows."""
        return bisect_left(self.sizes, num_rows)

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
