"""The free list of the KV cache: a stack of slot numbers on the CPU.

Lives here: which slots are free. Not here: who holds the others (`slot_ledger.py`,
`prefix_cache.py`) and the memory itself (`engine/kv_pool.py`).
"""

from __future__ import annotations

import numpy as np

from lightllm_server.router.step_plan import Int32Array

__all__ = ["KvSlots"]


class KvSlots:
    """Slots 0 … num_slots-1, each free or handed out."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._stack: Int32Array = np.arange(num_slots, dtype=np.int32)
        self._num_free = num_slots

    @property
    def num_free(self) -> int:
        return self._num_free

    def allocate(self, count: int) -> Int32Array:
        """Take `count` slots: [count], a copy. The caller has made room before."""
        assert 0 <= count <= self._num_free, f"asked for {count} of {self._num_free} free slots"
        self._num_free -= count
        return self._stack[self._num_free : self._num_free + count].copy()

    def free(self, slots: Int32Array) -> None:
        """Give `slots` [any length] back; later steps may write to them at once."""
        end = self._num_free + len(slots)
        assert end <= self.num_slots, f"{end} slots free of {self.num_slots}"
        self._stack[self._num_free : end] = slots
        self._num_free = end

    def free_slots(self) -> Int32Array:
        """The free slots, for checks: a view of the stack."""
        return self._stack[: self._num_free]
