"""Greedy tokens and logits equal transformers', however the work is cut into steps.

float32; tokens are compared as far as the margin of the two best logits exceeds rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_driver import EngineDriver
from lightllm_server.engine.runner import ModelRunner
from lightllm_server.router import admission
from llama_oracle import CASES, greedy, logits, write_oracle

MakeRunner = Callable[..., ModelRunner]
# one per dialect; the others run with `whole`
QUICK = ("new dialect, GQA", "llama3 rope, old", "attention and MLP bias")
NUM_OUTPUTS = 12


def prompts_of(lengths: tuple[int, ...], vocab_size: int = 131) -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(0, vocab_size, length).tolist() for length in lengths]


def check_greedy(oracle: torch.nn.Module, prompts: list[list[int]], got: list[list[int]]) -> None:
    num_certain = 0
    for prompt, ids in zip(prompts, got, strict=True):
        wanted, certain = greedy(oracle, prompt, NUM_OUTPUTS)
        assert ids[:certain] == wanted[:certain]
        assert len(ids) == NUM_OUTPUTS
        num_certain += certain
    assert num_certain > 0.8 * NUM_OUTPUTS * len(prompts), "the margins prove too little"


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.whole) for name in CASES],
)
def test_tokens_and_logprobs(tmp_path: Path, make_runner: MakeRunner, name: str) -> None:
    oracle = write_oracle(tmp_path, CASES[name])
    runner = make_runner(tmp_path)
    prompts = prompts_of((1, 7, 40, 23, 23))
    # a batch, in one step
    driver = EngineDriver(runner)
    check_greedy(oracle, prompts, driver.generate(prompts, max_new_tokens=NUM_OUTPUTS))
    # the same again: all but the last token comes from the prefix tree
    check_greedy(oracle, prompts, driver.generate(prompts, max_new_tokens=NUM_OUTPUTS))
    assert driver.scheduler.prefix_hit_tokens_total > 80
    # chunks of at most 16 tokens beside decode rows
    chunked = EngineDriver(runner, max_batch_tokens=16, prefix_cache=False)
    check_greedy(oracle, prompts, chunked.generate(prompts, max_new_tokens=NUM_OUTPUTS))
    assert chunked.num_mixed_steps > 3
    # every prompt token's logprob, across chunks
    request = chunked.add(prompts[2], max_new_tokens=1, prompt_logprobs=3)
    chunked.run()
    wanted = logits(oracle, prompts[2]).log_softmax(-1)
    reported = chunked.opened[request].prompt_logprobs
    assert reported is not None
    assert reported.logprobs[0] is None
    expected = wanted[:-1].gather(1, torch.tensor(prompts[2][1:]).unsqueeze(1)).squeeze(1)
    assert reported.logprobs[1:] == pytest.approx(expected.tolist(), abs=1e-4)
    best = wanted[:-1].topk(3)
    for tops, values, ids in zip(reported.tops[1:], best.values, best.indices, strict=True):
        assert [top.logprob for top in tops] == pytest.approx(values.tolist(), abs=1e-4)
        assert tops[0].token_id == int(ids[0])


def test_preempted_and_resumed(tmp_path: Path, make_runner: MakeRunner) -> None:
    case = dataclasses.replace(CASES["new dialect, GQA"], config={"eos_token_id": None})
    oracle = write_oracle(tmp_path, case)
    prompts = prompts_of((20, 21, 22, 23))
    # each fits alone, but not all of them, which a far too hopeful estimate admits
    driver = EngineDriver(
        make_runner(tmp_path),
        num_slots=100,
        prefix_cache=False,
        policy=admission.EfficientAdmission(expected_new_tokens=1),
    )
    sampling = {"max_new_tokens": NUM_OUTPUTS, "ignore_eos": False, "prompt_logprobs": 0}
    requests = [driver.add(prompt, **sampling) for prompt in prompts]
    driver.run()
    assert driver.scheduler.preempted_total > 0
    check_greedy(oracle, prompts, [driver.ids(request) for request in requests])
    for prompt, request in zip(prompts, requests, strict=True):
        reported = driver.opened[request].prompt_logprobs
        assert reported is not None
        assert len(reported.logprobs) == len(prompt)


def test_sampled_logprobs_are_of_the_raw_logits(tmp_path: Path, make_runner: MakeRunner) -> None:
    oracle = write_oracle(tmp_path, CASES["tied"])
    driver = EngineDriver(make_runner(tmp_path))
    prompt = prompts_of((9,))[0]
    request = driver.add(
        prompt, max_new_tokens=5, temperature=1.5, seed=7, logprobs=4, frequency_penalty=1.0
    )
    driver.run()
    ids = list(prompt)
    for token in driver.tokens[request]:
        wanted = logits(oracle, ids)[-1].log_softmax(-1)
        assert token.logprob == pytest.approx(float(wanted[token.token_id]), abs=1e-4)
        assert [top.logprob for top in token.tops] == pytest.approx(
            wanted.topk(4).values.tolist(), abs=1e-4
        )
        ids.append(token.token_id)
