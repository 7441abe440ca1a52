"""What only the whole server shows: counts that are true while the model computes."""

from __future__ import annotations

import threading

import pytest

from http_calls import metric, post_json
from server_process import ServerProcess, wait_until
from tiny_llama import tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


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
        before = metric(url, "lightllm_request_count_total")
        for thread in threads:
            thread.start()
        wait_until(lambda: metric(url, "lightllm_request_count_total") == before + 4, 10, "all in")
        wait_until(lambda: metric(url, "lightllm_batch_current_size") == 1, 10, "one runs")
        assert metric(url, "lightllm_queue_size") == 3
        assert metric(url, "lightllm_queue_tokens") == 3 * 1000
        for thread in threads:
            thread.join()
        assert metric(url, "lightllm_queue_size") == 0
        assert metric(url, "lightllm_batch_current_size") == 0
        assert metric(url, "lightllm_request_success_total") >= 4
