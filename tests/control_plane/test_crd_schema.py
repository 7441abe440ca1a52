"""Every rule, pattern, bound, enum and type of the CRD accepts and refuses on a real API server.

What is tried is listed from the CRD file: a rule or pattern without a case in `crd_cases` fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from crd_cases import CONTAINERS, PATTERNS, RULES, STRETCHED, beside, named, spec
from crd_schema import Node, nodes, resources
from rest import Answer, Rest

pytestmark = pytest.mark.slow

RESOURCES = resources("default")
NODES = nodes()
BY_PATH = {node.path: node for node in NODES}
EXPRESSIONS = [(node.path, rule["message"]) for node in NODES for rule in node.rules]
WITH_PATTERN = [node.path for node in NODES if "pattern" in node.schema]

# a JSON value of another type
WRONG = {"string": 7, "integer": "x", "boolean": "x", "object": 7, "array": 7, "int-or-string": {}}


@pytest.fixture(scope="module", autouse=True)
def existing(rest: Rest) -> None:
    """A resource whose status can be written."""
    rest("POST", RESOURCES, named("existing")).expect(201)


def submit(rest: Rest, body: dict[str, Any]) -> Answer:
    """Create it, or write the status of `existing`, on trial."""
    if "status" in body:
        return rest(
            "PATCH",
            f"{RESOURCES}/existing/status",
            {"status": body["status"]},
            content_type="application/merge-patch+json",
            dryRun="All",
            fieldValidation="Strict",
        )
    return rest("POST", RESOURCES, body, dryRun="All", fieldValidation="Strict")


def with_value(path: str, value: Any) -> dict[str, Any]:
    """A resource that has this value there and is valid otherwise."""
    node = BY_PATH[path]
    body = {**spec(), "spec": deepcopy({**CONTAINERS["spec"], **beside(path)})}
    place(body, node.keys, value)
    return body


def place(body: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    parent: Any = body
    path = ""
    for number, key in enumerate(keys):
        path += key if key in ("[]", "{}") or not path else f".{key}"
        default = [] if keys[number + 1 : number + 2] == ("[]",) else {}
        child = value if number == len(keys) - 1 else deepcopy(CONTAINERS.get(path, default))
        if key == "[]":
            parent.append(child)
            parent = child
        else:
            name = "k" if key == "{}" else key
            if number == len(keys) - 1:
                parent[name] = child
            parent = parent.setdefault(name, child)


def bounds() -> Iterator[tuple[str, str]]:
    names = ("minimum", "maximum", "minLength", "maxLength", "maxItems", "maxProperties")
    for node in NODES:
        yield from ((node.path, name) for name in (*names, "minProperties") if name in node.schema)


def at_and_beyond(node: Node, bound: str) -> tuple[Any, Any, str]:
    """The last value that is accepted, the first that is not, and what the refusal says."""
    limit = node.schema[bound]
    step = 1 if bound.startswith("max") else -1
    match bound:
        case "minimum":
            said = f"should be greater than or equal to {limit}"
            return limit, limit + step, said
        case "maximum":
            return limit, limit + step, f"should be less than or equal to {limit}"
        case "minLength" | "maxLength":
            limits = {"minLength": "should be at least", "maxLength": "may not be more than"}
            first, second = (stretched(node.path, limit), stretched(node.path, limit + step))
            return first, second, f"{limits[bound]} {limit}"
        case "maxItems":
            item = sample(f"{node.path}[]")
            return [item] * limit, [item] * (limit + 1), f"must have at most {limit} item"
        case _:
            said = f"must have at most {limit} item"
            if bound == "minProperties":
                said = f"should have at least {limit} properties"
            return properties(node.path, limit), properties(node.path, limit + step), said


def stretched(path: str, length: int) -> str:
    start, filler, *end = STRETCHED.get(path, ("", "a"))
    ending = "".join(end)
    return start[:length] + filler * max(0, length - len(start + ending)) + ending


def sample(path: str) -> Any:
    node = BY_PATH[path]
    value = {"string": "a", "integer": 1, "object": {}, "int-or-string": 1}[node.type]
    return deepcopy(CONTAINERS.get(path, value))


def properties(path: str, count: int) -> dict[str, Any]:
    values = sample(f"{path}{{}}") if f"{path}{{}}" in BY_PATH else {}
    return {f"k{number}": values for number in range(count)}


def test_each_rule_and_pattern_has_a_case() -> None:
    assert {(path, message) for path in RULES for message in RULES[path]} == {*EXPRESSIONS}
    assert {*PATTERNS} == {*WITH_PATTERN}
    assert len(EXPRESSIONS) == len({*EXPRESSIONS})


def test_nothing_is_unbounded() -> None:
    """Without an upper bound on size an object could fill etcd, or a rule cost too much."""
    limits = {"string": "maxLength", "array": "maxItems"}
    written = [node for node in NODES if node.path.startswith("spec")]
    bare = [
        node.path
        for node in written
        if (limit := limits.get(node.type)) and limit not in node.schema
        if "enum" not in node.schema
    ]
    maps = [n.path for n in written if "additionalProperties" in n.schema]
    bare += [path for path in maps if "maxProperties" not in BY_PATH[path].schema]
    bare += [n.path for n in written if n.type == "integer" and "minimum" not in n.schema]
    assert bare == []


@pytest.mark.parametrize(("path", "message"), EXPRESSIONS)
def test_a_rule(rest: Rest, path: str, message: str) -> None:
    rule = RULES[path][message]
    assert rule.accepted
    assert rule.refused

    target = f"{RESOURCES}/changing"

    def attempt(body: dict[str, Any]) -> Answer:
        if rule.before is None:
            return submit(rest, body)
        changed = {**body, "metadata": rest("GET", target).body["metadata"]}
        return rest("PUT", target, changed, dryRun="All", fieldValidation="Strict")

    if rule.before is not None:
        rest("DELETE", target)
        rest("POST", RESOURCES, {**rule.before, "metadata": {"name": "changing"}}).expect(201)
    for body in rule.accepted:
        attempt(body).expect(201 if rule.before is None else 200)
    for body in rule.refused:
        answer = attempt(body)
        assert answer.status == 422, body
        assert message in answer.message


@pytest.mark.parametrize("path", WITH_PATTERN)
def test_a_pattern(rest: Rest, path: str) -> None:
    accepted, refused = PATTERNS[path]
    for value in accepted:
        submit(rest, with_value(path, value)).expect(201)
    for value in refused:
        answer = submit(rest, with_value(path, value))
        assert answer.status == 422, value
        assert f"should match '{BY_PATH[path].schema['pattern']}'" in answer.message


@pytest.mark.parametrize(("path", "bound"), [*bounds()])
def test_a_bound(rest: Rest, path: str, bound: str) -> None:
    at, beyond, said = at_and_beyond(BY_PATH[path], bound)
    submit(rest, with_value(path, at)).expect(201)
    answer = submit(rest, with_value(path, beyond))
    assert answer.status == 422
    assert said in answer.message


@pytest.mark.parametrize("path", [node.path for node in NODES if "enum" in node.schema])
def test_an_enum(rest: Rest, path: str) -> None:
    values = BY_PATH[path].schema["enum"]
    expected = 200 if path.startswith("status") else 201
    for value in values:
        submit(rest, with_value(path, value)).expect(expected)
    answer = submit(rest, with_value(path, "other"))
    assert answer.status == 422
    assert 'Unsupported value: "other": supported values: ' in answer.message
    assert all(f'"{value}"' in answer.message for value in values)


@pytest.mark.parametrize("path", [node.path for node in NODES if node.path])
def test_a_type(rest: Rest, path: str) -> None:
    answer = submit(rest, with_value(path, WRONG[BY_PATH[path].type]))
    assert answer.status == 422, answer.body
    shown = path.replace("[]", "[0]").replace("{}", ".k")
    schema, kind = BY_PATH[path].schema, BY_PATH[path].type
    kind = {"int-or-string": "integer,string"}.get(kind, kind)
    kind = "date-time" if schema.get("format") == "date-time" else kind
    # below status the message's second half says where from status on
    assert f"{shown}: Invalid value: " in answer.message
    assert f" in body must be of type {kind}: " in answer.message


@pytest.mark.parametrize(
    ("path", "name"),
    [(node.path, name) for node in NODES for name in node.schema.get("required", ())],
)
def test_a_required_field(rest: Rest, path: str, name: str) -> None:
    value = {key: value for key, value in sample_object(path).items() if key != name}
    body = with_value(path, value) if path else {**spec()}
    if not path:
        del body[name]
    answer = submit(rest, body)
    assert answer.status == 422
    field = f"{path}.{name}".lstrip(".").replace("[]", "[0]")
    assert f"{field}: Required value" in answer.message


def sample_object(path: str) -> dict[str, Any]:
    return dict(CONTAINERS.get(path, {}))


@pytest.mark.parametrize(
    "path", [node.path for node in NODES if node.schema.get("format") == "date-time"]
)
def test_a_time(rest: Rest, path: str) -> None:
    submit(rest, with_value(path, "2026-01-01T00:00:00Z")).expect(200)
    answer = submit(rest, with_value(path, "yesterday"))
    assert answer.status == 422
    assert "must be of type date-time" in answer.message


def test_two_conditions_of_one_type_are_refused(rest: Rest) -> None:
    condition = CONTAINERS["status.conditions[]"]
    answer = submit(rest, {**spec(), "status": {"conditions": [condition, condition]}})
    assert answer.status == 422
    assert "Duplicate value" in answer.message
