"""Packed uploads give every array back, and touch no buffer whose copy is still under way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightllm_server.engine.staging import PinnedUploader


class Event:
    """Done when told so."""

    def __init__(self) -> None:
        self.num_records = 0
        self.done = True

    def record(self) -> None:
        self.num_records += 1

    def query(self) -> bool:
        return self.done


@pytest.fixture
def events():
    return []


@pytest.fixture
def uploader(events):
    def make_event():
        events.append(Event())
        return events[-1]

    return PinnedUploader(torch.device("cpu"), make_event=make_event, pin=False)


def test_arrays_of_all_kinds_come_back(uploader):
    arrays = [
        np.arange(15, dtype=np.int64).reshape(3, 5)[:, ::2],
        np.zeros(0, np.int32),
        np.array([1.5, -np.inf], np.float32),
        np.arange(7, dtype=np.int32),
        np.array([True, False, True]),
    ]
    for array, tensor in zip(arrays, uploader.upload(*arrays), strict=True):
        assert tensor.shape == array.shape
        assert np.array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype


def test_a_buffer_serves_again_once_its_copy_is_done(uploader, events):
    first = uploader.upload(np.arange(4))[0]
    second = uploader.upload(np.arange(4, 8))[0]
    assert (first.tolist(), second.tolist()) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert uploader.num_buffers == 1
    assert events[0].num_records == 2


def test_a_copy_under_way_keeps_its_buffer(uploader, events):
    uploader.upload(np.arange(4))
    events[0].done = False
    uploader.upload(np.arange(4))
    assert (uploader.num_buffers, len(events)) == (2, 2)
    events[0].done = True
    uploader.upload(np.arange(4))
    assert len(events) == 2


def test_a_small_buffer_makes_room_for_a_large_one(uploader):
    uploader.upload(np.arange(1))
    large = np.arange(100_000)
    assert np.array_equal(uploader.upload(large)[0].numpy(), large)
    assert uploader.num_buffers == 1


def test_write_fills_memory_in_place(uploader):
    memory = torch.full((2, 3), 7, dtype=torch.int32)
    uploader.write(memory, np.arange(6, dtype=np.int32))
    assert memory.tolist() == [[0, 1, 2], [3, 4, 5]]
