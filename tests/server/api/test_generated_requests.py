"""Generated requests: from the OpenAPI document, good ones with a fault, and any bytes.

Whatever is sent, the answer is a correct 200 or a 4xx with an error body, and nothing restarts.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from http_calls import Answer, connect, read
from lightllm_server.api.app import routes_app

pytestmark = pytest.mark.slow

SETTINGS = settings(
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
NUM_EXAMPLES = [150, pytest.param(5000, marks=[pytest.mark.whole, pytest.mark.timeout(3600)])]
ALLOWED = {200, 400, 404, 413}
# so that an accepted request is short
SHORT = {
    "/v1/completions": {"max_tokens": 2},
    "/v1/chat/completions": {"max_tokens": 2},
}


class Connection:
    """One keep-alive connection, opened again when the server closes it."""

    def __init__(self, url: str) -> None:
        self._connection = connect(url)

    def post(self, path: str, data: bytes) -> Answer:
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", path, data, headers)
        return read(self._connection)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def connection(server):
    pids = server.pids()
    connection = Connection(server.url)
    yield connection
    connection.close()
    assert server.pids() == pids
    assert server.status("/readyz") == 200


def check(path: str, data: bytes, answer: Answer) -> None:
    assert answer.status in ALLOWED, (path, data[:2000], answer)
    if answer.status != 200:
        assert answer.error["message"]


def shortened(path: str, body: Any) -> Any:
    """The same with few tokens to generate, so that it is a matter of the schema alone."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    if path in SHORT:
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int):
                body[name] = min(body[name], 2)
        body.setdefault("max_tokens", 2)
    elif isinstance(parameters := body.get("parameters"), dict):
        count = parameters.get("max_new_tokens")
        if isinstance(count, int):
            body["parameters"] = {**parameters, "max_new_tokens": min(count, 2)}
    return body


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, -0.0, 1e-300, "", "\0", "\uffff", "é🙂", "</s>"])
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)

GOOD = {
    "/v1/completions": {
        "model": "tiny",
        "prompt": "hello",
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "n": 2,
        "best_of": 2,
        "echo": True,
        "logprobs": 2,
        "stop": ["a", "b"],
        "stop_token_ids": [5],
        "seed": 1,
        "logit_bias": {"5": 1.5},
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 1,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "u",
        "metadata": {"a": "b"},
    },
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": [{"type": "text", "text": "y"}]},
        ],
        "max_completion_tokens": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "text"},
        "n": 2,
        "stop": "z",
        "tools": None,
        "stream": False,
    },
    "/generate": {
        "inputs": "hello",
        "parameters": {
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 5,
            "top_p": 0.9,
            "max_new_tokens": 2,
            "stop_sequences": ["x"],
            "return_details": True,
            "best_of": 2,
            "repetition_penalty": 1.2,
            "seed": 4,
        },
        "multimodal_params": {"images": []},
    },
    "/tokenize": {"prompt": "hello", "add_special_tokens": True},
    "/detokenize": {"tokens": [1, 2, 3], "skip_special_tokens": True},
}


def paths_of(value: Any, path: tuple = ()) -> list[tuple]:
    """Where something can be replaced."""
    found = [path] if path else []
    inner = {}
    if isinstance(value, dict | list):
        inner = value if isinstance(value, dict) else dict(enumerate(value))
    for key, part in inner.items():
        found += paths_of(part, (*path, key))
    return found


def replaced(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def at(value: Any, path: tuple) -> Any:
    for key in path:
        value = value[key]
    return value


def like(value: Any) -> st.SearchStrategy:
    """Values of the same type, most of them in bounds."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.integers(0, 9)
    if isinstance(value, float):
        return st.floats(0, 2)
    if isinstance(value, str):
        return st.text(max_size=20)
    return st.just(value)


@st.composite
def one_fault(draw) -> tuple[str, Any]:
    """A good request with one or two values replaced by anything, or something added."""
    path = draw(st.sampled_from(sorted(GOOD)))
    body: Any = GOOD[path]
    for _ in range(draw(st.integers(1, 2))):
        where = draw(st.sampled_from(paths_of(body)))
        body = replaced(body, where, draw(like(at(body, where)) | json_values))
    if draw(st.integers(0, 9)) == 0:
        body = {**body, draw(st.text(max_size=10)): draw(json_values)}
    return path, body


def encoded(body: Any) -> bytes:
    """JSON, with NaN and lone surrogates as Python writes them."""
    return json.dumps(body).encode()


def operations() -> list:
    import schemathesis

    schema = schemathesis.openapi.from_dict(routes_app(None).openapi())
    found = [operation.ok() for operation in schema.get_all_operations()]
    return [operation for operation in found if operation.method == "post"]


def test_the_good_requests_are_good(connection):
    for path, body in GOOD.items():
        answer = connection.post(path, encoded(body))
        assert answer.status == 200, (path, answer)


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_good_requests_with_a_fault(connection, num_examples):
    seen = set()

    @settings(SETTINGS, max_examples=num_examples)
    @given(one_fault())
    def send(request):
        path, body = request
        data = encoded(shortened(path, body))
        answer = connection.post(path, data)
        seen.add(answer.status)
        check(path, data, answer)

    send()
    # neither everything refused nor everything let through
    assert {200, 400} <= seen


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_requests_from_the_openapi_document(connection, num_examples):
    """schemathesis generates bodies that fit the document, and bodies that do not."""
    from schemathesis import GenerationMode

    found = operations()
    assert len(found) == 7
    cases = st.one_of(
        [
            operation.as_strategy(generation_mode=mode)
            for operation in found
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        ]
    )
    seen = set()

    @settings(SETTINGS, max_examples=num_examples)
    @given(cases)
    def send(case):
        data = encoded(shortened(case.path, case.body)) if _is_json(case.body) else b"{}"
        answer = connection.post(case.path, data)
        seen.add(answer.status)
        check(case.path, data, answer)

    send()
    assert {200, 400} <= seen


def _is_json(body: Any) -> bool:
    return isinstance(body, dict | list | str | int | float | bool) or body is None


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_any_bytes(connection, num_examples):
    """Cut and stitched JSON, and bytes that are none."""
    good = [encoded(body) for body in GOOD.values()]
    piece = st.one_of(st.binary(max_size=20), st.sampled_from(good))

    @settings(SETTINGS, max_examples=num_examples)
    @given(st.sampled_from(sorted(GOOD)), st.lists(piece, max_size=3), st.integers(0, 400))
    def send(path, pieces, cut):
        data = b"".join(pieces)[:cut]
        check(path, data, connection.post(path, data))

    send()
