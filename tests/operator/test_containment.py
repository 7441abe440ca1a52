"""When a live object counts as applied: after what the API server does to values, not after edits.

On a real API server: tests/control_plane/test_in_line.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from lightllm_operator import manifests
from lightllm_operator.containment import contains, stamped
from operator_objects import spec_of


def limits(value: object) -> dict:
    return {"containers": [{"resources": {"limits": {"cpu": value}}}]}


@pytest.mark.parametrize(
    ("stored", "sent"),
    [
        ("500m", "0.5"),
        ("500m", ".5"),
        ("1", 1),
        ("1", "1000m"),
        ("1Gi", "1024Mi"),
        ("1536Mi", "1.5Gi"),
        ("12Ei", "12Ei"),
        ("1E", "1000P"),
        ("1E", "1e18"),
        ("1k", "1E3"),
        ("1m", "1e-3"),
        ("2", "+2."),
        ("1n", "0.0000000001"),
        ("100u", "0.0001"),
        # longer than any number
        ("1e99999999999999999999", "1e99999999999999999999"),
    ],
)
def test_a_quantity_that_is_written_otherwise_is_equal(stored, sent):
    assert contains(limits(stored), limits(sent))


@pytest.mark.parametrize(
    ("stored", "sent"),
    [
        ("1", "1m"),
        ("1M", "1Mi"),
        ("1Gi", "1025Mi"),
        ("1", "x"),
        ("y", "x"),
        ("1", ""),
        (None, "1"),
        ("1e99", "1e98"),
    ],
)
def test_another_quantity_is_not(stored, sent):
    assert not contains(limits(stored), limits(sent))


@pytest.mark.parametrize("field", ["labels", "annotations", "nodeSelector", "env"])
def test_texts_are_no_quantities(field):
    assert not contains({field: {"a": "500m"}}, {field: {"a": "0.5"}})
    assert not contains({field: {"limits": "1"}}, {field: {"limits": "1000m"}})


def test_an_empty_text_is_absent_but_in_the_users_maps():
    assert contains({"env": [{"name": "A"}]}, {"env": [{"name": "A", "value": ""}]})
    assert not contains(
        {"env": [{"name": "A", "value": "x"}]}, {"env": [{"name": "A", "value": ""}]}
    )
    assert contains({"labels": {"a": ""}}, {"labels": {"a": ""}})
    assert not contains({"labels": {}}, {"labels": {"a": ""}})


@pytest.mark.parametrize("value", [False, 0])
def test_false_and_zero_are_not_absent(value):
    # the default of automountServiceAccountToken is true
    assert not contains({}, {"a": value})


def test_what_is_asked_for_no_more_changes_the_digest():
    two, one = ({"a": "b", "c": "d"}, {"a": "b"})
    before, after = (
        stamped(manifests.service(spec_of(service={"annotations": each}))) for each in (two, one)
    )
    assert contains(before, before)
    assert contains(after, after)
    assert not contains(before, after)
    assert not contains(after, before)


def test_an_edit_of_others_is_seen_though_the_digest_is_the_same():
    wanted = stamped(manifests.service(spec_of(service={"annotations": {"a": "b"}})))
    live = {**wanted, "spec": {**wanted["spec"], "clusterIP": "10.0.0.1"}}
    assert contains(live, wanted)
    assert not contains({**live, "spec": {**live["spec"], "type": "NodePort"}}, wanted)


def test_resources_alike_have_children_with_one_digest():
    one, other = (
        stamped(manifests.service(replace(spec_of(), namespace=each, uid=each)))
        for each in ("one", "other")
    )
    assert one["metadata"]["annotations"] == other["metadata"]["annotations"]


def test_template_and_count_are_not_in_the_digest():
    manifest = {"metadata": {"name": "a"}, "spec": {"template": {}, "selector": {}}}
    more = {**manifest, "spec": {"template": {"x": 1}, "selector": {}, "replicas": 2}}
    assert stamped(manifest)["metadata"] == stamped(more)["metadata"]
    other = {**manifest, "spec": {"template": {}, "selector": {"x": "y"}}}
    assert stamped(manifest)["metadata"] != stamped(other)["metadata"]
