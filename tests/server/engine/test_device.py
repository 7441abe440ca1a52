"""Which device a rank gets, on machines whose GPUs are made up."""

from __future__ import annotations

import pytest
import torch

from lightllm_server.config import EngineConfig
from lightllm_server.engine.device import resolve_device
from lightllm_server.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The compute capabilities of the machine's GPUs."""
    capabilities = [(9, 0), (8, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    return capabilities


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_rank_has_its_gpu(gpus: list[tuple[int, int]], device: str) -> None:
    config = EngineConfig(device=device, tp=2)
    assert [resolve_device(config, rank) for rank in (0, 1)] == [
        torch.device("cuda", 0),
        torch.device("cuda", 1),
    ]


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_a_gpu_that_is_too_old_is_refused(
    gpus: list[tuple[int, int]], device: str, capability: tuple[int, int]
) -> None:
    gpus[1] = capability
    config = EngineConfig(device=device, tp=2)
    assert resolve_device(config, 0).index == 0
    major, minor = capability
    cause = rf"GPU 1 \(Card 1\) has compute capability {major}\.{minor}, needed: 8\.0"
    with pytest.raises(ConfigError, match=cause):
        resolve_device(config, 1)


def test_the_cpu_is_chosen_whatever_the_gpus_are(gpus: list[tuple[int, int]]) -> None:
    gpus[:] = [(7, 5)]
    assert resolve_device(EngineConfig(device="cpu"), 0).type == "cpu"
    # auto with too few GPUs
    assert resolve_device(EngineConfig(tp=2), 0).type == "cpu"
    with pytest.raises(ConfigError, match="1 CUDA devices are visible"):
        resolve_device(EngineConfig(device="cuda", tp=2), 0)
