"""Parsing: every field arrives, and what the schema cannot refuse is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lightllm_operator.errors import SpecError
from lightllm_operator.spec import OWNED_OPTIONS, CacheSpec, SecretKey, parse
from operator_objects import resource, spec_of
from spec_fields import FIELDS

CRD = Path(__file__).parents[2] / "crds" / "lightllmdeployments.serving.lightllm.io.yaml"

# a value that differs from the default for every field of the schema
EVERYTHING = {
    **FIELDS,
    "model": {**FIELDS["model"], "credentialsSecretRef": {"name": "s3"}},
    "cache": {
        "claimName": "weights",
        "size": "9Gi",
        "storageClassName": "fast",
        "accessMode": "ReadWriteOnce",
    },
    "tensorParallelSize": 2,
    "kvCache": {"dtype": "Int8", "memoryPercent": 50},
    "replicas": 3,
    "autoscaling": {
        "minReplicas": 2,
        "maxReplicas": 9,
        "targetQueueDepth": 7,
        "tolerancePercent": 5,
        "scaleUp": {"stabilizationWindowSeconds": 1, "maxPods": 2, "periodSeconds": 3},
        "scaleDown": {"stabilizationWindowSeconds": 4, "maxPods": 5, "periodSeconds": 6},
    },
    "rollout": {**FIELDS["rollout"], "maxUnavailable": "25%"},
    "suspend": True,
    "service": {"type": "NodePort", "port": 8080, "annotations": {"a": "b"}},
    "image": "i",
}


def schema():
    document = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    return document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def test_the_example_has_every_field_of_the_schema():
    def compare(node, value, path):
        if "properties" in node and "x-kubernetes-preserve-unknown-fields" not in node:
            assert set(value) == set(node["properties"]), path
            for name, child in node["properties"].items():
                compare(child, value[name], f"{path}.{name}")

    compare(schema(), EVERYTHING, "spec")


def test_every_field_has_a_description_in_the_schema():
    def check(node, path):
        for name, child in node.get("properties", {}).items():
            assert child.get("description"), f"{path}.{name}"
            check(child, f"{path}.{name}")

    spec = schema()
    del spec["properties"]["env"]["items"]
    check(spec, "spec")


def test_every_field_changes_what_is_parsed():
    bare = parse(resource())
    for name, value in EVERYTHING.items():
        assert parse(resource(**{name: value})) != bare, name


def test_the_schemas_defaults_are_the_parsers():
    def defaults(node):
        if "properties" not in node:
            return node.get("default")
        values = {name: defaults(child) for name, child in node["properties"].items()}
        return {name: value for name, value in values.items() if value is not None} or None

    given = defaults(schema())
    assert given is not None
    given["model"]["uri"] = "file:///models/demo-model"
    assert given["model"].pop("tokenSecretRef") == {"key": "token"}
    assert given.pop("cache") == {"accessMode": "ReadWriteMany"}
    autoscaling = {**given.pop("autoscaling"), "maxReplicas": 3}
    assert parse(resource(**given)) == parse(resource())
    assert (
        spec_of(autoscaling=autoscaling).autoscaling
        == spec_of(autoscaling={"maxReplicas": 3}).autoscaling
    )


@pytest.mark.parametrize("argument", ["--tp=2", "--kv_dtype=int8", "--model-dir=/x", "--port"])
def test_options_that_the_operator_owns_are_refused(argument):
    option = argument[2:].partition("=")[0].replace("_", "-")
    with pytest.raises(SpecError, match=rf"spec.extraArgs\[1\]: got --{option},"):
        spec_of(extraArgs=["--max-n=2", argument])


@pytest.mark.parametrize("option", sorted(OWNED_OPTIONS))
def test_a_refused_option_names_what_to_do_instead(option):
    with pytest.raises(SpecError, match=f"got --{option},") as refused:
        spec_of(extraArgs=[f"--{option}=1"])
    *_, advice = str(refused.value).partition("itself: ")
    fields = re.findall(r"spec\.([\w.]+)", advice)
    assert fields or advice.endswith("; leave it out")
    for field in fields:
        node = schema()
        for name in field.split("."):
            node = node["properties"][name]


def test_a_path_does_not_leave_its_claim():
    with pytest.raises(SpecError, match=r"spec.model.uri"):
        spec_of(model={"uri": "pvc://models/../other"})


def test_defaults_inside_what_has_none():
    model = {"uri": "hf://org/name", "tokenSecretRef": {"name": "hub"}}
    spec = spec_of(model=model, cache={"size": "9Gi"})
    assert spec.model.token_secret_ref == SecretKey(name="hub", key="token")
    assert spec.cache == CacheSpec(size="9Gi", access_mode="ReadWriteMany")


@pytest.mark.parametrize(
    ("uri", "claim", "path"),
    [("pvc://models/a/b", "models", "a/b"), ("file:///models/x", None, "/models/x")],
)
def test_a_uri_has_a_claim_or_a_path_in_the_image(uri, claim, path):
    model = spec_of(model={"uri": uri}).model
    assert (model.claim, model.path) == (claim, path)
