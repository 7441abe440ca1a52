"""tp 2 and 4 give the greedy tokens of tp 1, also with fewer KV heads than ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from engine_driver import EngineDriver
from lightllm_server.engine.runner import ModelRunner
from llama_oracle import CASES, greedy, write_oracle
from thread_ranks import ThreadedTensorParallel

CHILD = Path(__file__).with_name("tp_processes.py")
PROMPTS = [[7, 8, 9, 10, 11, 12], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [100], [7, 8, 9, 10, 50]]
NUM_OUTPUTS = 10


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("MQA", 2),
        ("attention and MLP bias", 4),
        *(
            pytest.param(name, size, marks=pytest.mark.whole)
            for name in ("12 heads, 4 KV heads", "new dialect, GQA", "tied", "qwen2", "llama3 rope")
            for size in (2, 4)
        ),
    ],
)
def test_ranks_agree_with_the_oracle(tmp_path: Path, name: str, size: int) -> None:
    # 131 tokens divide by neither 2 nor 4: the vocabulary is padded
    oracle = write_oracle(tmp_path, CASES[name])
    group = ThreadedTensorParallel(tmp_path, tmp_path, size)
    try:
        driver = EngineDriver(group.runner, max_batch_tokens=16)
        for _ in range(2):
            tokens = driver.generate(PROMPTS, max_new_tokens=NUM_OUTPUTS)
            for prompt, ids in zip(PROMPTS, tokens, strict=True):
                wanted, certain = greedy(oracle, prompt, NUM_OUTPUTS)
                assert certain >= NUM_OUTPUTS - 2
                assert ids[:certain] == wanted[:certain]
        request = driver.add(PROMPTS[1], max_new_tokens=2, prompt_logprobs=1, n=3, temperature=1.0)
        driver.run()
        assert driver.opened[request].prompt_logprobs is not None
        assert [len(driver.ids(request, choice)) for choice in range(3)] == [2, 2, 2]
    finally:
        group.close()


def test_sampling_is_that_of_one_rank(
    tmp_path: Path, make_runner: Callable[..., ModelRunner]
) -> None:
    write_oracle(tmp_path, CASES["new dialect, GQA"])
    sampling = {"max_new_tokens": 12, "temperature": 0.9, "top_p": 0.9, "seed": 11}
    alone = EngineDriver(make_runner(tmp_path)).generate(PROMPTS, **sampling)
    group = ThreadedTensorParallel(tmp_path, tmp_path, 2)
    try:
        assert EngineDriver(group.runner).generate(PROMPTS, **sampling) == alone
    finally:
        group.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_processes_over_gloo(tmp_path: Path, size: int) -> None:
    """Real ranks; each listens on nothing but loopback."""
    oracle = write_oracle(tmp_path, CASES["12 heads, 4 KV heads"])
    (tmp_path / "run").mkdir(mode=0o700)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(tmp_path), str(rank), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        tokens = [int(token_id) for token_id in ranks[0].stdout.readline().split()]
        for rank in ranks:
            connections = psutil.Process(rank.pid).net_connections()
            listening = {c.laddr.ip for c in connections if c.status == "LISTEN"}
            assert all(ip.startswith(("127.", "::1")) for ip in listening), listening
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    wanted, certain = greedy(oracle, prompt, 8)
    assert certain >= 6
    assert tokens[:certain] == wanted[:certain]
