"""Every field of every request schema is bounded, and nothing is coerced."""

from __future__ import annotations

import json

import pytest

from lightllm_server.api.body import parse
from lightllm_server.api.lightllm_schema import CompatRequest, GenerateRequest
from lightllm_server.api.openai_schema import ChatRequest, CompletionRequest
from lightllm_server.api.tokens import DetokenizeRequest, TokenizeRequest
from lightllm_server.errors import RequestError

SCHEMAS = [
    GenerateRequest,
    CompatRequest,
    CompletionRequest,
    ChatRequest,
    TokenizeRequest,
    DetokenizeRequest,
]


def unbounded(schema: dict, path: str = "") -> list[str]:
    """Paths of values in a JSON schema that have no upper bound."""
    found = []
    for name in ("anyOf", "oneOf", "allOf"):
        for index, part in enumerate(schema.get(name, ())):
            found += unbounded(part, f"{path}|{index}")
    kind = schema.get("type")
    closed = "enum" in schema or "const" in schema
    if kind in ("integer", "number") and not closed:
        low, high = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
        if not (any(k in schema for k in low) and any(k in schema for k in high)):
            found.append(path)
    if kind == "string" and not closed and "maxLength" not in schema:
        found.append(path)
    if kind == "array":
        if "maxItems" not in schema:
            found.append(path)
        found += unbounded(schema["items"], path + "[]")
    if kind == "object":
        for name, part in schema.get("properties", {}).items():
            found += unbounded(part, f"{path}.{name}")
        found += _unbounded_keys(schema, path)
    return found


def _unbounded_keys(schema: dict, path: str) -> list[str]:
    others = schema.get("additionalProperties", schema.get("patternProperties"))
    if others is False:
        return []
    if others is None or others is True:
        return [path]
    found = [] if "maxProperties" in schema else [path]
    for part in schema.get("patternProperties", {"*": others}).values():
        found += unbounded(part, path + ".*")
    return found


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_every_field_is_bounded(schema):
    document = schema.model_json_schema()
    for name, part in [("", document), *document.get("$defs", {}).items()]:
        assert unbounded(part, name) == []


def test_the_meta_test_can_fail():
    assert unbounded({"type": "object", "properties": {"a": {"type": "string"}}}) != []
    assert unbounded({"type": "integer", "minimum": 0}) == [""]
    assert unbounded({"type": "array", "maxItems": 3, "items": {"type": "number"}}) == ["[]"]
    assert unbounded({"type": "string", "maxLength": 3}) == []


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_nothing_is_coerced(schema):
    config = schema.model_config
    assert config["strict"] is True
    assert config["extra"] == "forbid"
    assert config["allow_inf_nan"] is False


def refused(schema, body) -> RequestError:
    with pytest.raises(RequestError) as error:
        parse(schema, body if isinstance(body, bytes) else json.dumps(body).encode())
    return error.value


def test_errors_name_field_value_and_bound():
    error = refused(CompletionRequest, {"prompt": "x", "top_p": 1.5})
    assert error.field == "top_p"
    assert str(error) == "top_p: must be less than or equal to 1, got 1.5"
    error = refused(ChatRequest, {"messages": [{"role": "x", "content": "y"}]})
    assert error.field == "messages.0.role"
    assert "'system', 'developer', 'user', 'assistant' or 'tool'" in str(error)
    assert str(error).endswith('got "x"')
    error = refused(GenerateRequest, {"inputs": "x", "parameters": {"beams": 1}})
    assert (error.field, error.code) == ("parameters.beams", "unknown_field")
    error = refused(GenerateRequest, {})
    assert (error.field, error.code) == ("inputs", "missing_field")


def test_several_errors_are_listed_and_then_counted():
    body = {"prompt": "x", "top_p": 2, "n": 0, "seed": "a", "top_k": -5, "min_p": 7}
    message = str(refused(CompletionRequest, body))
    assert message.count("got") == 3
    assert message.endswith("and 2 more")


@pytest.mark.parametrize("data", [b"", b"{", b"[", b"nul", b'{"prompt": "\xff"}', b'{"a":1}{'])
def test_what_is_no_json_is_said_to_be_none(data):
    assert refused(CompletionRequest, data).code == "invalid_json"


def test_a_million_errors_cost_little():
    import time

    many_keys = b"{" + b",".join(b'"k%d":1' % i for i in range(100_000)) + b"}"
    bodies = (
        many_keys,
        b'{"prompt": [' + b"{}," * 100_000 + b"1]}",
        b'{"prompt": [' + b"-1," * 1_000_000 + b"1]}",
        b'{"messages": [' + b'{"a":{"b":1}},' * 100_000 + b"1]}",
        b'{"a":' * 100_000,
    )
    for body in bodies:
        for schema in (CompletionRequest, ChatRequest):
            began = time.process_time()
            refused(schema, body)
            assert time.process_time() - began < 0.4


def test_values_in_errors_are_short_and_safe():
    error = refused(CompletionRequest, {"prompt": "x", "user": "\u202e" * 3000, "n": "\x1b[2J"})
    assert str(error).isascii()
    assert str(error).isprintable()
    assert len(str(error)) < 300


@pytest.mark.parametrize("name", ["tools", "functions", "prediction", "web_search_options"])
def test_unsupported_fields_may_be_given_as_nothing(name):
    body = {"messages": [{"role": "user", "content": "x"}]}
    assert parse(ChatRequest, json.dumps({**body, name: None}).encode())
    assert parse(ChatRequest, json.dumps({**body, name: []}).encode())
    for value in ([{}], {"a": 1}, "x", True):
        error = refused(ChatRequest, {**body, name: value})
        assert (error.field, error.code) == (name, "unsupported_parameter")
        assert str(error) == f"{name}: not supported by this server, leave it out"


def test_a_tool_call_id_is_refused_by_name():
    body = {"messages": [{"role": "tool", "content": "x", "tool_call_id": "call_1"}]}
    assert refused(ChatRequest, body).field == "messages.0.tool_call_id"
