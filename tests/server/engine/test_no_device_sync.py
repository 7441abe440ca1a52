"""Launching a step on CUDA waits for nothing: seen without a GPU, on tensors that only claim one.

Every op of a launch is watched for the forms that make torch wait for the device: values read on
the host, results whose size depends on values, copies between host and device that block.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import lightllm_kernels
from engine_driver import server_config
from lightllm_kernels import decode_attention
from lightllm_server.engine import runner as runner_module
from lightllm_server.engine import shard as shard_module
from lightllm_server.engine.cuda_graphs import EagerRecorder
from lightllm_server.engine.parallel import Solo
from lightllm_server.engine.runner import ModelRunner
from lightllm_server.messages import SamplingParams
from lightllm_server.models.config import ModelConfig
from lightllm_server.router.step_plan import RowCopy, RowStart, StepPlan
from lightllm_server.status_page import StatusRow
from tiny_llama import tiny_llama

pytestmark = [
    # torch's tensors without data take 10 s to import
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]

CUDA = torch.device("cuda")
READS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal")


class Waited(AssertionError):
    """The launch would have waited for the device."""


class SyncWatch(TorchDispatchMode):
    """Raises Waited at the first op that waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        if any(tensor.is_cuda for tensor in tensors) and name.startswith(READS):
            raise Waited(f"{func} reads a value")
        if name == "_to_copy" and "device" in kwargs:
            crosses = kwargs["device"] is not None and args[0].is_cuda != (
                torch.device(kwargs["device"]).type == "cuda"
            )
            if crosses and not kwargs.get("non_blocking"):
                raise Waited(f"{func} to {kwargs['device']} blocks")
        if name == "copy_" and args[0].is_cuda != args[1].is_cuda:
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            if not non_blocking:
                raise Waited(f"{func} blocks")
        if name.startswith("index"):
            indices = next((arg for arg in args if isinstance(arg, (list, tuple))), ())
            if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
                raise Waited(f"{func} looks for the true entries of a mask")
        return func(*args, **kwargs)


class ClaimingUploader:
    """Tensors of the arrays' shapes and dtypes."""

    def upload(self, *arrays: Any) -> list[torch.Tensor]:
        dtypes = [getattr(torch, array.dtype.name) for array in arrays]
        return [
            torch.empty(array.shape, dtype=dtype, device=CUDA)
            for array, dtype in zip(arrays, dtypes, strict=True)
        ]

    def write(self, destination: torch.Tensor, array: Any) -> None:
        assert destination.nbytes == array.nbytes


@pytest.fixture
def claimed_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors may be on a CUDA device that is not there; kernels are not started."""
    for module in pkgutil.iter_modules(lightllm_kernels.__path__):
        loaded = importlib.import_module(f"lightllm_kernels.{module.name}")
        if hasattr(loaded, "launch"):
            monkeypatch.setattr(loaded, "launch", lambda *args, **options: None)
    monkeypatch.setattr(decode_attention, "num_multiprocessors", lambda device: 132)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(shard_module, "resolve_device", lambda config, rank: CUDA)
    monkeypatch.setattr(shard_module, "make_uploader", lambda device: ClaimingUploader())
    monkeypatch.setattr(shard_module, "load_dummy_weights", load)
    monkeypatch.setattr(runner_module, "size_engine", lambda config, shard: 256)
    monkeypatch.setattr(ModelRunner, "_on_device", lambda runner, function: function())
    # inference mode would hide what the composite ops are made of
    monkeypatch.setattr(runner_module, "_load", runner_module._load.__wrapped__)
    with FakeTensorMode(), torch.no_grad():
        yield


class Source:
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def get_shape(self) -> tuple[int, ...]:
        return self.shape

    def __getitem__(self, index: tuple[slice, ...]) -> torch.Tensor:
        return torch.empty(self.shape, device=CUDA)[index]


def load(loaders: Any, shapes: Any, dtype: Any, device: Any, progress: Any) -> int:
    for name, shape in shapes.items():
        loaders[name](Source(shape))
    return 0


@pytest.fixture(params=["model", "int8"])
def runner(
    request: pytest.FixtureRequest, claimed_cuda: None, row: StatusRow, tmp_path: Path
) -> ModelRunner:
    model_dir = tiny_llama()
    config = server_config(
        model_dir, device="cuda", dtype="float16", kv_dtype=request.param, load_format="dummy"
    )
    runner = ModelRunner(config, ModelConfig.from_dir(model_dir), Solo(), row)
    runner._shard.make_pool(512)
    return runner


def int32(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


def mixed_plan(samplings: list[SamplingParams]) -> StepPlan:
    """Two chunks, one behind a prefix hit and scored, whose last tokens are sampled (the second
    for two rows); two decode rows.
    """
    starts = tuple(
        RowStart(
            row=row,
            choice=0,
            prefix_slots=int32(*range(40, 40 + hit)),
            sampling=sampling,
            prompt_len=5,
            token_ids=(4, 5, 6, 7, 8, 9),
        )
        for row, hit, sampling in zip((0, 1, 2), (0, 3, 0), samplings, strict=True)
    )
    return StepPlan(
        step=1,
        token_ids=int32(5, 6, 7, 8, 9),
        chunk_rows=int32(0, 1),
        chunk_starts=int32(0, 3),
        chunk_lens=int32(3, 2),
        decode_rows=int32(5, 6),
        decode_positions=int32(8, 9),
        slots=int32(*range(7)),
        sample_token_index=int32(2, 4, 4, 5, 6),
        sample_rows=int32(0, 1, 2, 5, 6),
        sample_positions=int32(3, 5, 5, 9, 10),
        sample_out_lens=int32(0, 0, 0, 3, 4),
        prompt_logprob_chunks=int32(0),
        starts=starts,
        copies=(RowCopy(1, 2, 5),),
    )


def decode_plan(rows: tuple[int, ...]) -> StepPlan:
    none = int32()
    count = len(rows)
    return StepPlan(
        step=2,
        token_ids=none,
        chunk_rows=none,
        chunk_starts=none,
        chunk_lens=none,
        decode_rows=int32(*rows),
        decode_positions=np.full(count, 6, np.int32),
        slots=np.arange(count, dtype=np.int32),
        sample_token_index=np.arange(count, dtype=np.int32),
        sample_rows=int32(*rows),
        sample_positions=np.full(count, 7, np.int32),
        sample_out_lens=np.full(count, 1, np.int32),
        prompt_logprob_chunks=none,
    )


SAMPLINGS = {
    "greedy": SamplingParams(max_new_tokens=9, prompt_logprobs=2),
    "drawn": SamplingParams(
        max_new_tokens=9, temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, prompt_logprobs=0
    ),
    "adjusted": SamplingParams(
        max_new_tokens=9,
        temperature=0.7,
        repetition_penalty=1.2,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={3: 1.0},
        min_new_tokens=3,
        logprobs=4,
        prompt_logprobs=1,
    ),
}


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_launches_wait_for_nothing(runner: ModelRunner, kind: str) -> None:
    plans = [mixed_plan([SAMPLINGS[kind]] * 3), decode_plan((0, 1, 2)), decode_plan((0,))]
    with SyncWatch():
        for plan in plans:
            output = runner._forward(plan)
            assert output.sampled is not None
            assert output.sampled.ids.shape == plan.sample_rows.shape
            assert output.sampled.ids.is_cuda


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_replays_wait_for_nothing(runner: ModelRunner, kind: str) -> None:
    runner._shard.prepare_graphs(16)
    with SyncWatch():
        # what is recorded must not wait either: a capture would fail
        runner._shard.record_graphs(EagerRecorder(), lambda: None)
        runner._forward(mixed_plan([SAMPLINGS[kind]] * 3))
        plan = decode_plan((0, 1, 2))
        assert runner._shard.replays(plan)
        output = runner._forward(plan)
    assert output.sampled is not None
    assert output.sampled.logprobs.shape == (3,)


@pytest.mark.parametrize(
    "wait",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: bool((tensor > 0).all()),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: tensor.cpu(),
        lambda tensor: tensor.nonzero(),
        lambda tensor: torch.tensor([1, 2], device=CUDA),
        lambda tensor: torch.ones(3).to(CUDA),
        lambda tensor: tensor.copy_(torch.ones(3)),
    ],
)
def test_the_watch_sees_what_waits(claimed_cuda: None, wait: Any) -> None:
    tensor = torch.ones(3, device=CUDA)
    with SyncWatch(), pytest.raises(Waited):
        wait(tensor)
