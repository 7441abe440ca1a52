"""Checkpoint tensors in memory, and a tensor-parallel group that runs its ranks one by one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from lightllm_server.layers.parameter import WeightOptions


@dataclass
class TensorSource:
    """What safetensors' slices offer."""

    tensor: torch.Tensor

    def get_shape(self):
        return list(self.tensor.shape)

    def __getitem__(self, index):
        return self.tensor[index]


@dataclass
class OneOf:
    """Rank `rank` of `size`; collectives only collect, the test combines."""

    rank: int
    size: int

    def all_reduce(self, tensor):
        return tensor

    def all_gather(self, tensor):
        return tensor


@pytest.fixture(autouse=True)
def _inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture
def options():
    return WeightOptions(dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def load():
    """Load tensors by name into a layer."""

    def fill(layer, tensors):
        loaders = layer.loaders()
        assert set(loaders) == set(tensors)
        for name, loader in loaders.items():
            loader(TensorSource(tensors[name]))
        return layer

    return fill


@pytest.fixture
def source():
    return TensorSource


@pytest.fixture
def ranks():
    return lambda size: [OneOf(rank, size) for rank in range(size)]


@pytest.fixture
def assert_close():
    def check(actual, expected, atol=1e-5):
        assert actual.shape == expected.shape
        assert float((actual.double() - expected.double()).abs().max()) <= atol

    return check
