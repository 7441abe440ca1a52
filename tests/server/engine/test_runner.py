"""What the runner promises the router: order, errors through `wait`, a runner that stays usable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_driver import EngineDriver, server_config
from lightllm_server.engine.build import build_runner
from lightllm_server.engine.null_runner import NullRunner
from lightllm_server.engine.probe_plans import probe_plan, warm_plans
from lightllm_server.engine.runner import ModelRunner
from lightllm_server.engine.step_output import StepOutput
from lightllm_server.errors import ConfigError, DeviceError, EngineError
from lightllm_server.router.step_plan import StepPlan
from lightllm_server.status_page import Field, StatusRow
from tiny_llama import tiny_llama

MakeRunner = Callable[..., ModelRunner]
PROMPT = [5, 6, 7, 8, 9]


def test_failed_step_is_reported_and_the_next_one_works(make_runner: MakeRunner) -> None:
    runner = make_runner(tiny_llama())
    good = probe_plan(runner._shard, 4)
    bad = dataclasses.replace(good, step=7, token_ids=np.full(4, 10**6, np.int32))
    steps = [runner.launch(plan) for plan in (good, bad, good)]
    assert len(steps[0].wait(10).token_ids) == 1
    with pytest.raises(EngineError, match="step 7 failed"):
        steps[1].wait(10)
    assert steps[2].wait(10) == steps[0].wait(10)


@pytest.mark.parametrize("num_rows", [1, 16])
@pytest.mark.parametrize("max_length", [20, 4096])
def test_the_warm_up_decodes_in_one_part_and_in_several(
    make_runner: MakeRunner, num_rows: int, max_length: int
) -> None:
    runner = make_runner(tiny_llama(), running_max_req_size=num_rows, max_req_total_len=max_length)
    plans = list(warm_plans(runner._shard))
    for plan in plans:
        assert len(runner.launch(plan).wait(30).token_ids) == len(plan.starts) <= num_rows
    lens = {int(plan.decode_positions[0]) + 1 for plan in plans if len(plan.decode_rows)}
    assert lens == {16, min(2048, max_length)}
    assert all(len(plan.token_ids) for plan in plans) == (num_rows > 1)


ILLEGAL_ADDRESS = "CUDA error: an illegal memory access was encountered"


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (torch.AcceleratorError(ILLEGAL_ADDRESS), DeviceError),
        (torch.cuda.CudaError(710), DeviceError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"), DeviceError),
        (RuntimeError("Triton Error [CUDA]: device-side assert triggered"), DeviceError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), EngineError),
        # pinned memory of the host
        (torch.AcceleratorError("CUDA error: out of memory"), EngineError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), EngineError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), EngineError),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, RuntimeError) else value.__name__,
)
def test_a_lost_device_is_no_fault_of_the_step(
    make_runner: MakeRunner,
    monkeypatch: pytest.MonkeyPatch,
    fault: RuntimeError,
    raised: type[Exception],
) -> None:
    runner = make_runner(tiny_llama())

    def forward(plan: StepPlan) -> StepOutput:
        raise fault

    monkeypatch.setattr(runner, "_forward", forward)
    with pytest.raises(raised, match="step 0"):
        runner.launch(probe_plan(runner._shard, 4)).wait(10)


def test_wait_gives_up(make_runner: MakeRunner) -> None:
    runner = make_runner(tiny_llama())
    with pytest.raises(EngineError, match="took longer than 0 s"):
        runner.launch(probe_plan(runner._shard, 256)).wait(0)


def test_logits_that_are_no_numbers(make_runner: MakeRunner) -> None:
    runner = make_runner(tiny_llama())
    with torch.inference_mode():
        runner._shard._model.norm._weight.fill_(float("nan"))
    with pytest.raises(EngineError, match="not numbers"):
        runner.launch(probe_plan(runner._shard, 4)).wait(10)


def test_info_and_progress(make_runner: MakeRunner, row: StatusRow) -> None:
    runner = make_runner(tiny_llama(), max_req_total_len=300, running_max_req_size=9)
    info = runner.info()
    assert (info.family, info.dtype, info.kv_dtype, info.tp) == ("llama", "float32", "float32", 1)
    assert (info.max_total_token_num, info.max_req_total_len) == (1024, 300)
    assert (info.running_max_req_size, info.batch_max_tokens) == (9, 256)
    # 2 layers, keys and values, 2 KV heads of 16 dims in 4 bytes
    assert info.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert row[Field.LOADED_PERMILLE] == 1000
    ticks = row[Field.TICK]
    EngineDriver(runner).generate([PROMPT], max_new_tokens=3)
    # a tick per layer and step
    assert row[Field.TICK] >= ticks + 2 * 3


def test_samples_of_one_prompt_share_its_slots(make_runner: MakeRunner) -> None:
    driver = EngineDriver(make_runner(tiny_llama()), prefix_cache=False)
    sampling = {"max_new_tokens": 10, "temperature": 1.0, "seed": 3}
    together = driver.add(PROMPT, n=4, **sampling)
    driver.run()
    choices = [driver.ids(together, choice) for choice in range(4)]
    assert len({tuple(ids) for ids in choices}) > 1
    # the first choice is what the request draws alone
    assert driver.generate([PROMPT], **sampling)[0] == choices[0]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"max_req_total_len": 5000}, "--max-req-total-len is 5000, allowed: at most .* 4096"),
        ({"max_total_token_num": 2**30}, "--max-total-token-num is 1073741824, but"),
        ({"mem_fraction": 0.05, "max_total_token_num": 10**9}, "--mem-fraction 0.05"),
        ({"device": "cuda"}, "--device cuda with --tp 1: 0 CUDA devices"),
    ],
)
def test_refused_options(make_runner: MakeRunner, options: dict[str, int], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        make_runner(tiny_llama(), **options)


def test_measured_sizes(make_runner: MakeRunner) -> None:
    info = make_runner(tiny_llama(), max_total_token_num=None, batch_max_tokens=None).info()
    assert info.batch_max_tokens % 64 == 0
    assert 64 <= info.batch_max_tokens <= 8192
    # as many as all rows can use
    assert info.max_total_token_num == 16 * 4096


def test_null_model(tmp_path: Path, row: StatusRow) -> None:
    config = server_config(tiny_llama(), null_model=True)
    runner = build_runner(config, tmp_path, row)
    assert isinstance(runner, NullRunner)
    (ids,) = EngineDriver(runner).generate([PROMPT], max_new_tokens=400)
    assert len(ids) == 400
    assert not set(ids) & set(runner.info().eos_ids)
    assert len(set(ids)) > 100
