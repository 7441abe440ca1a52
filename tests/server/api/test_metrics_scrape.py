"""Metrics of a running server: exact at the moment of the scrape."""

from __future__ import annotations

import threading

import pytest

import fake_engine
from http_calls import call, metric, post_json
from server_process import ServerProcess, wait_until
from tiny_llama import tiny_llama

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slow_engine():
    """One request at a time, half a second per step."""
    environment = {"FAKE_RUNNING": "1", "FAKE_STEP_MS": "500"}
    with ServerProcess(
        tiny_llama(), "--drain-delay", "0", command=fake_engine.COMMAND, environment=environment
    ) as server:
        server.wait_ready(120)
        yield server


def test_waiting_is_exact_during_a_long_step(slow_engine):
    url = slow_engine.url
    body = {"inputs": "abcd", "parameters": {"max_new_tokens": 3}}
    threads = [threading.Thread(target=post_json, args=(url, "/generate", body)) for _ in range(4)]
    before = metric(url, "lightllm_request_count_total")
    for thread in threads:
        thread.start()
    count = "lightllm_request_count_total"
    wait_until(lambda: metric(url, count) == before + 4, 5, "all accepted", 0.005)
    wait_until(lambda: metric(url, "lightllm_batch_current_size") == 1, 5, "one runs", 0.005)
    assert metric(url, "lightllm_queue_size") == 3
    assert metric(url, "lightllm_queue_tokens") == 12
    for thread in threads:
        thread.join()
    assert metric(url, "lightllm_queue_size") == 0
    assert metric(url, "lightllm_queue_tokens") == 0


def test_durations_are_those_of_the_requests(slow_engine):
    url = slow_engine.url

    def total(name: str) -> float:
        return metric(url, f"lightllm_request_{name}_sum")

    parts = ("validation_duration", "queue_duration", "service_duration")
    names = ("duration", "first_token_duration", *parts)
    before = {name: total(name) for name in names}
    body = {"inputs": "abcd", "parameters": {"max_new_tokens": 2}}
    assert post_json(url, "/generate", body).status == 200
    taken = {name: total(name) - before[name] for name in names}
    assert 0.9 < taken["duration"] < 2.5
    assert sum(taken[part] for part in parts) == pytest.approx(taken["duration"], abs=1e-6)
    assert taken["first_token_duration"] < taken["duration"]


def test_lightllms_names_are_there(server):
    post_json(server.url, "/generate", {"inputs": "hello"})
    text = call(server.url, "GET", "/metrics").body.decode()
    for name in (
        "lightllm_queue_size",
        "lightllm_batch_current_size",
        "lightllm_batch_pause_size",
        "lightllm_batch_current_max_tokens",
        "lightllm_max_running",
        "lightllm_kv_tokens_total",
        "lightllm_kv_tokens_used",
        "lightllm_request_count_total",
        "lightllm_request_success_total",
        "lightllm_request_failure_total",
        "lightllm_request_duration_bucket",
        "lightllm_request_validation_duration_bucket",
        "lightllm_request_inference_duration_bucket",
        "lightllm_request_service_duration_bucket",
        "lightllm_request_queue_duration_bucket",
        "lightllm_request_first_token_duration_bucket",
        "lightllm_request_mean_time_per_token_duration_bucket",
        "lightllm_request_input_length_bucket",
        "lightllm_request_generated_tokens_bucket",
        "lightllm_request_max_new_tokens_bucket",
        "lightllm_preemptions_total",
        "lightllm_recomputed_tokens_total",
        "lightllm_prefix_hit_tokens_total",
    ):
        assert f"\n{name}" in text, name


def test_metrics_have_no_labels_from_clients(server):
    before = call(server.url, "GET", "/metrics").body.count(b"\n")
    for number in range(20):
        body = {"model": f"model-{number}", "prompt": "x", "user": f"user-{number}"}
        post_json(server.url, "/v1/completions", body)
        call(server.url, "GET", f"/path-{number}")
    assert call(server.url, "GET", "/metrics").body.count(b"\n") == before


def test_generated_tokens_add_up(server):
    before = metric(server.url, "lightllm_generation_tokens_total")
    body = {"inputs": "hi", "parameters": {"max_new_tokens": 40, "ignore_eos": True}}
    post_json(server.url, "/generate", body)
    wait_until(
        lambda: metric(server.url, "lightllm_generation_tokens_total") == before + 40, 2, "counted"
    )


def test_the_api_stays_small(server):
    pid = server.pids()["api"]
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmRSS"))
    assert int(line.split()[1]) / 1024 < 200
