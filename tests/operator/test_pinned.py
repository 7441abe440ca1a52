"""What counts as an edit that must reach the pods."""

from __future__ import annotations

import pytest

from lightllm_operator.facts import Pinned, spec_hash
from operator_objects import spec_of

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


def test_a_pin_is_read_as_it_was_written():
    pinned = Pinned(
        template_version=1,
        image="i",
        spec_hash=BARE,
        tensor_parallel_size=2,
        kv_dtype="int8",
        kv_reason="so",
    )
    assert Pinned.from_json(pinned.to_json()) == pinned
