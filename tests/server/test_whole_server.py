"""What only the whole server shows: ranks that answer alike, and counts that are true meanwhile."""

from __future__ import annotations

import threading

import pytest

from http_calls import metric, post_json
from server_process import ServerProcess, wait_until
from tiny_llama import tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# where the two best are closer than this, rounding may decide
MARGIN = 1e-3
PROMPTS = ["abc", "the prefix cache", "x" * 300, "Z"]
NUM_TOKENS = 24


def greedy(url: str) -> list[list[tuple[str, bool]]]:
    """Per prompt, each token's text and whether rounding could not have chosen another."""
    body = {
        "prompt": PROMPTS,
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "logprobs": 2,
        "ignore_eos": True,
    }
    answer = post_json(url, "/v1/completions", body)
    assert answer.status == 200, answer.body
    found = []
    for choice in answer.json["choices"]:
        columns = choice["logprobs"]
        certain = [len(top) == 2 and _margin(top) > MARGIN for top in columns["top_logprobs"]]
        found.append(list(zip(columns["tokens"], certain, strict=True)))
    return found


def _margin(top: dict[str, float]) -> float:
    low, high = sorted(top.values())
    return high - low


def test_tensor_parallel_servers_give_the_tokens_of_one_process():
    """Two KV heads: with four ranks, each KV head is on two of them."""
    answers = {}
    for tp in (1, 2, 4):
        options = ("--tp", str(tp), "--max-total-token-num", "4096", "--drain-delay", "0")
        with ServerProcess(tiny_llama(), *options) as server:
            server.wait_ready(200)
            answers[tp] = greedy(server.url)
    num_compared = 0
    for tp in (2, 4):
        for alone, split in zip(answers[1], answers[tp], strict=True):
            for (wanted, certain), (got, _) in zip(alone, split, strict=True):
                if not certain:
                    break
                assert got == wanted
                num_compared += 1
    assert num_compared > len(PROMPTS) * NUM_TOKENS


def test_waiting_is_exact_while_the_model_computes():
    options = ("--running-max-req-size", "1", "--max-total-token-num", "8192")
    with ServerProcess(tiny_llama(), *options, "--drain-delay", "0") as server:
        server.wait_ready(120)
        url = server.url
        body = {
            "inputs": "long " * 200,
            "parameters": {"max_new_tokens": 2000, "ignore_eos": True},
        }
        threads = [
            threading.Thread(target=post_json, args=(url, "/generate", body, 200)) for _ in range(4)
        ]
        assert metric(url, "lightllm_queue_size") == 0
        for thread in threads:
            thread.start()
        # the scrape is a request too
        wait_until(lambda: metric(url, "lightllm_http_in_flight") == 5, 10, "all sent")
        wait_until(lambda: metric(url, "lightllm_batch_current_size") == 1, 10, "one runs")
        assert metric(url, "lightllm_queue_size") == 3
        assert metric(url, "lightllm_queue_tokens") == 3 * 1000
        for thread in threads:
            thread.join()
        assert metric(url, "lightllm_queue_size") == 0
        assert metric(url, "lightllm_batch_current_size") == 0
        assert metric(url, "lightllm_request_success_total") >= 4
