"""LightLLM's routes: its schema, its frames, its benchmark client unchanged."""

from __future__ import annotations

import json
import threading

import pytest

from http_calls import call, events, get_json, post_json
from server_process import wait_until

pytestmark = pytest.mark.slow


def _parameters(**parameters):
    return {"inputs": "hello", "parameters": parameters}


def test_generate_gives_lightllms_fields(fake):
    answer = post_json(fake.url, "/generate", _parameters(max_new_tokens=7))
    assert answer.status == 200
    assert answer.json == {
        "generated_text": ["hellohe"],
        "count_output_tokens": 7,
        "finish_reason": "length",
        "prompt_tokens": 5,
    }


def test_defaults_are_16_greedy_tokens(server):
    answers = {post_json(server.url, "/generate", {"inputs": "hello"}).body for _ in range(3)}
    assert len(answers) == 1
    assert json.loads(answers.pop())["count_output_tokens"] <= 16


def test_details_list_every_token(fake):
    answer = post_json(fake.url, "/generate", _parameters(max_new_tokens=3, return_details=True))
    tokens = answer.json["tokens"]
    assert [token["text"] for token in tokens] == ["h", "e", "l"]
    assert [token["count_output_tokens"] for token in tokens] == [1, 2, 3]
    assert set(tokens[0]) == {
        "id",
        "text",
        "logprob",
        "special",
        "count_output_tokens",
        "prompt_tokens",
    }


def test_samples_make_lists(fake):
    answer = post_json(fake.url, "/generate", _parameters(max_new_tokens=3, best_of=2)).json
    assert answer["generated_text"] == ["hel", "hel"]
    assert answer["count_output_tokens"] == [3, 3]
    assert answer["finish_reason"] == ["length", "length"]


def test_stream_frames_are_lightllms(fake):
    answer = post_json(fake.url, "/generate_stream", _parameters(max_new_tokens=3))
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = answer.body.decode().split("\n\n")
    assert frames.pop() == ""
    assert all(frame.startswith('data:{"token":{"id":') for frame in frames)
    first, _, last = events(answer.body)
    assert first == {
        "token": {
            "id": first["token"]["id"],
            "text": "h",
            "logprob": -0.5,
            "special": False,
            "count_output_tokens": 1,
            "prompt_tokens": 5,
        },
        "generated_text": None,
        "finished": False,
        "finish_reason": None,
        "details": None,
    }
    assert last["finished"] is True
    assert last["finish_reason"] == "length"
    assert last["generated_text"] == "hel"


def test_deltas_make_the_whole_text(server):
    request = _parameters(max_new_tokens=100, ignore_eos=True)
    whole = post_json(server.url, "/generate", request).json
    frames = events(post_json(server.url, "/generate_stream", request).body)
    assert len(frames) == 100 == whole["count_output_tokens"]
    assert "".join(frame["token"]["text"] for frame in frames) == whole["generated_text"][0]
    assert frames[-1]["generated_text"] == whole["generated_text"][0]


def test_compat_route_selects_by_stream(fake):
    request = _parameters(max_new_tokens=3)
    assert post_json(fake.url, "/", request).json["generated_text"] == ["hel"]
    assert len(events(post_json(fake.url, "/", {**request, "stream": True}).body)) == 3


def test_the_published_benchmark_client_is_served(server):
    """What LightLLM's benchmark sends, with its headers, over both routes."""
    body = {
        "inputs": "a prompt",
        "parameters": {"do_sample": False, "ignore_eos": True, "max_new_tokens": 40},
    }
    headers = {"Content-Type": "application/json", "User-Agent": "Benchmark Client"}
    whole = call(server.url, "POST", "/generate", json.dumps(body).encode(), headers)
    assert whole.json["count_output_tokens"] == 40
    stream = call(server.url, "POST", "/generate_stream", json.dumps(body).encode(), headers)
    assert len(events(stream.body)) == 40


def test_stop_sequences_cut_the_text(fake):
    request = _parameters(max_new_tokens=50, stop_sequences=["lo"])
    answer = post_json(fake.url, "/generate", request).json
    assert answer["generated_text"] == ["hel"]
    assert answer["finish_reason"] == "stop"
    assert answer["count_output_tokens"] == 5
    frames = events(post_json(fake.url, "/generate_stream", request).body)
    assert "".join(frame["token"]["text"] for frame in frames) == "hel"
    assert frames[-1]["finish_reason"] == "stop"


def test_a_failure_before_the_first_token_is_an_error_answer(fake):
    answer = post_json(fake.url, "/generate", {"inputs": "FAIL"})
    assert answer.status == 500
    assert answer.error["message"] == "the fake failed on purpose"


def test_a_failure_in_a_stream_is_its_last_event(fake):
    *tokens, last = events(post_json(fake.url, "/generate_stream", {"inputs": "FAIL"}).body)
    assert [token["token"]["text"] for token in tokens] == ["F", "A"]
    assert last["error"]["code"] == "engine_error"


def test_a_sampled_request_is_reproducible_by_its_seed(server):
    request = _parameters(max_new_tokens=30, do_sample=True, temperature=2.0, seed=5)
    one, two = (post_json(server.url, "/generate", request).json for _ in range(2))
    assert one == two
    request["parameters"]["seed"] = 6
    assert post_json(server.url, "/generate", request).json != one


def test_token_load_and_info(server):
    load = get_json(server.url, "/token_load")
    assert set(load) == {"current_load", "logical_max_load", "dynamic_max_load"}
    info = get_json(server.url, "/info")
    assert info["model"] == "tiny"
    assert info["limits"]["max_req_total_len"] == 512
    assert info["num_heads"] == 4
    assert info["chat_template"] is True


def test_token_load_foresees_the_peak_of_what_runs(server):
    total = get_json(server.url, "/info")["max_total_token_num"]
    body = {"inputs": "hello", "parameters": {"best_of": 2, "max_new_tokens": 400}}
    body["parameters"] |= {"do_sample": True, "ignore_eos": True}
    client = threading.Thread(target=post_json, args=(server.url, "/generate", body))
    client.start()

    def load():
        return get_json(server.url, "/token_load")

    # two outputs of 400 tokens, begun in one step, will be held at once; few are held yet
    wait_until(lambda: load()["dynamic_max_load"] * total >= 800, 5, "the peak is foreseen")
    client.join()
    wait_until(lambda: load()["dynamic_max_load"] == 0, 5, "nothing runs")


def test_tokenize_and_detokenize_are_inverse(server):
    text = "Ünïcode, 漢字 and 🙂"
    encoded = post_json(server.url, "/tokenize", {"prompt": text}).json
    assert encoded["count"] == len(encoded["tokens"]) == len(text.encode())
    decoded = post_json(server.url, "/detokenize", {"tokens": encoded["tokens"]}).json
    assert decoded == {"prompt": text}


def test_tokenize_a_chat(server):
    messages = [{"role": "user", "content": "hi"}]
    encoded = post_json(server.url, "/tokenize", {"messages": messages}).json
    decoded = post_json(server.url, "/detokenize", {"tokens": encoded["tokens"]}).json
    assert decoded["prompt"] == "<|user|>hi</s><|assistant|>"
