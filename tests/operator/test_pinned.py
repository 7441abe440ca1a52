"""What counts as an edit that must reach the pods."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lightllm_operator import manifests
from lightllm_operator.facts import Pinned, spec_hash
from lightllm_operator.pins import pin_of, unedited_pin
from lightllm_operator.settings import Settings
from operator_objects import spec_of
from spec_fields import FIELDS

BARE = spec_hash(spec_of())


@pytest.mark.parametrize(
    "edit",
    [
        {"model": {"uri": "file:///models/other"}},
        {"gpu": {"count": 2}},
        {"tensorParallelSize": 1},
        {"kvCache": {"memoryPercent": 80}},
        {"drainTimeoutSeconds": 5},
        {"image": "registry/other:1"},
        {"extraArgs": ["--max-n=2"]},
        {"env": [{"name": "A", "value": "b"}]},
        {"resources": {"limits": {"memory": "1Gi"}}},
        {"podTemplate": {"tolerations": [{"operator": "Exists"}]}},
    ],
    ids=lambda edit: next(iter(edit)),
)
def test_an_edit_for_the_pods_is_seen(edit):
    assert spec_hash(spec_of(**edit)) != BARE


@pytest.mark.parametrize(
    "edit",
    [
        {"replicas": 3},
        {"autoscaling": {"maxReplicas": 3}},
        {"suspend": True},
        {"rollout": {"maxSurge": 2}},
        {"service": {"port": 8080}},
    ],
    ids=lambda edit: next(iter(edit)),
)
def test_what_reaches_no_pod_is_none(edit):
    assert spec_hash(spec_of(**edit)) == BARE


def test_a_default_that_the_api_server_fills_in_is_none():
    filled = spec_of(
        model={"uri": "file:///models/demo-model", "dtype": "auto"},
        gpu={"count": 1, "resourceName": "nvidia.com/gpu"},
        kvCache={},
        drainTimeoutSeconds=120,
        podTemplate={},
    )
    assert spec_hash(filled) == BARE


PINNED = Pinned(
    template_version=1,
    image="i",
    spec_hash=BARE,
    tensor_parallel_size=2,
    kv_dtype="int8",
    kv_reason="so",
)


def test_a_pin_is_read_as_it_was_written():
    assert Pinned.from_json(PINNED.to_json()) == PINNED
    asked = replace(PINNED, upgrade_request="1", commit="c")
    assert Pinned.from_json(asked.to_json()) == asked


def test_fields_of_another_operator_are_passed_over():
    said = {**json.loads(PINNED.to_json()), "page_size": 16}
    del said["commit"]
    assert Pinned.from_json(json.dumps(said)) == PINNED


@pytest.mark.parametrize(
    "edit",
    [
        {"image": None},
        {"image": 7},
        {"template_version": "1"},
        {"tensor_parallel_size": True},
        {"upgrade_request": 1},
    ],
)
def test_a_pin_with_a_wrong_value_is_none(edit):
    with pytest.raises(ValueError, match="of another type"):
        Pinned.from_json(json.dumps({**json.loads(PINNED.to_json()), **edit}))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", "1", "[" * 10**5])
def test_another_text_is_no_pin(text):
    with pytest.raises(ValueError):
        Pinned.from_json(text)


@pytest.mark.parametrize(
    "fields", [{}, FIELDS, {"model": {"uri": "hf://o/n", "revision": "v1"}}], ids=str
)
@pytest.mark.parametrize("commit", ["", "c0ffee"])
def test_a_lost_pin_is_told_by_the_pods(fields, commit):
    spec = spec_of(**{**fields, "extraArgs": ["--max-n", "2"]})
    made = replace(PINNED, spec_hash=spec_hash(spec), commit=commit if spec.model.is_remote else "")
    settings = Settings(serving_image="newer")
    rollout = manifests.strategy(spec, any_ready=True, surge_blocked=False)
    deployment = manifests.deployment(spec, settings, made, "{}", rollout)
    assert pin_of(deployment, spec) == made
    del deployment["metadata"]["annotations"]
    adopted = pin_of(deployment, spec)
    assert adopted is not None
    assert adopted.is_adopted
    assert unedited_pin(adopted, spec) == adopted
    again = manifests.deployment(spec, settings, adopted, "{}", rollout)
    assert again["spec"] == deployment["spec"]
