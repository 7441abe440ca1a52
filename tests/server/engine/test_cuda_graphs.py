"""Recorded decode steps without a GPU: the same memory, sizes and padding, replayed eagerly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_driver import EngineDriver
from lightllm_server.engine.cuda_graphs import EagerRecorder, graph_sizes, is_pure_decode
from lightllm_server.engine.runner import ModelRunner
from lightllm_server.messages import SamplingParams
from lightllm_server.router.step_plan import RowCopy, RowStart, StepPlan
from tiny_llama import tiny_llama

MakeRunner = Callable[..., ModelRunner]
DEMO_MODEL = Path(__file__).parents[3] / "examples" / "demo-model"


def decode_plan(rows: list[int], positions: list[int], slots: list[int]) -> StepPlan:
    empty = np.zeros(0, np.int32)
    decoded = np.array(rows, np.int32)
    return StepPlan(
        step=0,
        token_ids=empty,
        chunk_rows=empty,
        chunk_starts=empty,
        chunk_lens=empty,
        decode_rows=decoded,
        decode_positions=np.array(positions, np.int32),
        slots=np.array(slots, np.int32),
        sample_token_index=np.arange(len(rows), dtype=np.int32),
        sample_rows=decoded,
        sample_positions=np.array(positions, np.int32) + 1,
        sample_out_lens=np.ones(len(rows), np.int32),
        prompt_logprob_chunks=empty,
    )


def record(runner: ModelRunner, max_batch_size: int = 256) -> list[int]:
    """Let the runner replay; returns the sizes of the replays, as they come."""
    shard = runner._shard
    with torch.inference_mode():
        shard.prepare_graphs(max_batch_size)
        shard.record_graphs(EagerRecorder(), lambda: None)
    replayed: list[int] = []
    graphs, replay = shard._graphs, shard._graphs.replay

    def watched(plan):
        static = replay(plan)
        replayed.append(static.size)
        return static

    graphs.replay = watched
    return replayed


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (16, (1, 2, 4, 8, 16)),
        (40, (1, 2, 4, 8, 16, 32, 40)),
        (256, (1, 2, 4, 8, *range(16, 129, 16), 160, 192, 224, 256)),
        (
            500,
            (1, 2, 4, 8, *range(16, 129, 16), 160, 192, 224, 256, 320, 384, 448, 500),
        ),
    ],
)
def test_sizes(largest, sizes):
    assert graph_sizes(largest) == sizes


def test_what_is_replayed():
    plan = decode_plan([3, 4], [5, 6], [7, 8])
    assert is_pure_decode(plan)
    start = RowStart(
        row=1, choice=0, prefix_slots=plan.slots, sampling=SamplingParams(), prompt_len=2
    )
    for change in (
        {"token_ids": np.ones(1, np.int32)},
        {"starts": (start,)},
        {"copies": (RowCopy(1, 2, 3),)},
        {"sample_rows": np.array([3], np.int32)},
        {"sample_rows": np.array([4, 3], np.int32)},
        {"decode_rows": np.zeros(0, np.int32), "sample_rows": np.zeros(0, np.int32)},
    ):
        assert not is_pure_decode(dataclasses.replace(plan, **change)), change


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_replays_give_the_tokens_of_eager_steps(make_runner: MakeRunner, kv_dtype: str) -> None:
    runner = make_runner(DEMO_MODEL, kv_dtype=kv_dtype, running_max_req_size=40)
    generator = np.random.default_rng(1)
    vocab = runner.info().vocab_size
    prompts = [generator.integers(0, vocab, n).tolist() for n in (3, 17, 40, 5, 9, 26, 11)]
    lengths = (3, 30, 9, 14, 30, 5, 20)

    def tokens() -> list[list[int]]:
        driver = EngineDriver(runner, num_slots=1024)
        requests = [
            driver.add(
                prompt,
                max_new_tokens=length,
                temperature=0.8 * (index % 2),
                top_p=0.9,
                seed=index,
                frequency_penalty=0.5 * (index == 3),
            )
            for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
        ]
        driver.run()
        return [driver.ids(request) for request in requests]

    eager = tokens()
    replayed = record(runner)
    assert tokens() == eager
    # rows end one after the other, so that smaller sizes follow
    assert set(replayed) == {8, 4, 2}


def test_padding_touches_the_hold_slot_alone(make_runner: MakeRunner) -> None:
    runner = make_runner(tiny_llama())
    shard = runner._shard
    sizes = record(runner)
    pool, table = shard._pool, shard._table
    with torch.inference_mode():
        for layer in pool.layers:
            layer.fill_(0.5)
        table.req_to_slots.fill_(3)
        table.last_ids.copy_(torch.arange(len(table.last_ids)))
        before = [layer.clone() for layer in pool.layers]
        slots, ids = table.req_to_slots.clone(), table.last_ids.clone()
    runner.launch(decode_plan([2, 9, 4], [6, 0, 1], [11, 12, 13])).wait(10)
    assert sizes == [4]
    for layer, old in zip(pool.layers, before, strict=True):
        changed = (layer != old).flatten(1).any(1).nonzero().flatten().tolist()
        assert changed == [11, 12, 13, pool.padding_slot]
    changed = (table.req_to_slots != slots).nonzero().tolist()
    assert changed == [[2, 6], [4, 1], [9, 0], [shard.num_rows, 0]]
    assert set((table.last_ids != ids).nonzero().flatten().tolist()) <= {2, 9, 4}


def test_more_rows_than_were_recorded_run_eagerly(make_runner: MakeRunner) -> None:
    runner = make_runner(tiny_llama())
    eager = EngineDriver(runner).generate([[5, 6], [7], [8, 9]], max_new_tokens=6)
    replayed = record(runner, max_batch_size=2)
    assert EngineDriver(runner).generate([[5, 6], [7], [8, 9]], max_new_tokens=6) == eager
    assert replayed == []
    assert len(EngineDriver(runner).generate([[5, 6], [7]], max_new_tokens=6)[1]) == 6
    assert set(replayed) == {2}


def test_a_new_pool_forgets_the_recordings(make_runner: MakeRunner) -> None:
    runner = make_runner(tiny_llama())
    replayed = record(runner)
    plan = decode_plan([0], [0], [5])
    assert runner._shard.replays(plan)
    with torch.inference_mode():
        runner._shard.make_pool(64)
    assert not runner._shard.replays(plan)
    assert len(runner.launch(plan).wait(10).token_ids) == 1
    assert replayed == []
