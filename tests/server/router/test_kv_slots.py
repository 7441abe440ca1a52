"""The free list."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm_server.router.kv_slots import KvSlots


def test_every_slot_is_handed_out_once_and_comes_back() -> None:
    slots = KvSlots(10)
    first, second = slots.allocate(4), slots.allocate(6)
    assert slots.num_free == 0
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(10))
    slots.free(first)
    slots.free(second[2:])
    assert slots.num_free == 8
    assert sorted(slots.free_slots().tolist() + second[:2].tolist()) == list(range(10))
    assert sorted(slots.allocate(8).tolist()) == sorted([*first.tolist(), *second[2:].tolist()])


def test_what_was_handed_out_does_not_change_when_the_stack_does() -> None:
    slots = KvSlots(4)
    taken = slots.allocate(2)
    before = taken.tolist()
    slots.free(np.array([0, 1], dtype=np.int32)[:0])
    slots.free(taken[::-1].copy())
    slots.allocate(1)
    assert taken.tolist() == before
    assert taken.dtype == np.int32


def test_too_many_is_a_bug_and_says_so() -> None:
    slots = KvSlots(3)
    with pytest.raises(AssertionError, match="asked for 4 of 3"):
        slots.allocate(4)
    with pytest.raises(AssertionError, match="4 slots free of 3"):
        slots.free(np.array([0], dtype=np.int32))
