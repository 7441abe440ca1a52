"""Every example passes strict validation by the API server, other projects' APIs included."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from crd_schema import install
from lightllm_operator.names import HTTP_PORT, METRICS_PORT, SERVER, child_labels
from lightllm_operator.spec import parse
from rest import Rest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
FOREIGN = sorted(Path(__file__).with_name("foreign_crds").glob("*.yaml"))
METRICS = (ROOT / "server/lightllm_server/api/metrics.py").read_text(encoding="utf-8")


def documents(name: str) -> list[dict[str, Any]]:
    text = (ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


def only(name: str, kind: str) -> dict[str, Any]:
    [found] = [each for each in documents(name) if each["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def kubectl(api_server: Path):
    import binaries

    binaries.build(["kubectl"])
    command = [str(binaries.program("kubectl")), f"--kubeconfig={api_server}"]
    with Rest(api_server) as rest:
        install(rest)

    def call(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    for crd in FOREIGN:
        done = call("apply", "--server-side", "-f", crd)
        assert done.returncode == 0, done.stderr
    assert call("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s").stdout
    return call


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_accepted_as_it_stands(kubectl, namespace: str, path: Path) -> None:
    arguments = ("apply", f"--namespace={namespace}", "--dry-run=server", "--validate=strict")
    done = kubectl(*arguments, "-f", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(server dry run)") == len(documents(path.stem))
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("name", "kind", "field", "value", "said"),
    [
        ("keda", "ScaledObject", "triggers", None, "spec.triggers: Required value"),
        ("keda", "ScaledObject", "maxReplicas", 4, 'unknown field "spec.maxReplicas"'),
        (
            "inference-pool",
            "InferencePool",
            "targetPorts",
            [{"number": 0}],
            "targetPorts[0].number",
        ),
        ("inference-pool", "InferencePool", "extensionRef", {}, 'unknown field "spec.extension'),
        ("hpa", "HorizontalPodAutoscaler", "maxReplicas", 0, "spec.maxReplicas"),
    ],
)
def test_their_schemas_do_refuse(
    kubectl, namespace: str, name: str, kind: str, field: str, value: Any, said: str
) -> None:
    body = only(name, kind)
    body["spec"][field] = value
    if value is None:
        del body["spec"][field]
    arguments = ("apply", f"--namespace={namespace}", "--dry-run=server", "--validate=strict")
    done = kubectl(*arguments, "-f", "-", stdin=yaml.safe_dump(body))
    assert done.returncode != 0
    assert said in done.stderr


def resources() -> Iterator[dict[str, Any]]:
    for path in EXAMPLES:
        found = [d for d in documents(path.stem) if d["kind"] == "LightLLMDeployment"]
        assert found, path
        yield from found


def test_the_operator_parses_each_and_no_two_have_one_name() -> None:
    bodies = list(resources())
    for body in bodies:
        metadata = {**body["metadata"], "namespace": "default", "uid": "u", "generation": 1}
        parse({**body, "metadata": metadata})
    names = [body["metadata"]["name"] for body in bodies]
    assert len(names) == len({*names}) == len(EXAMPLES)


@pytest.mark.parametrize("name", ["hpa", "keda"])
def test_an_external_scaler_finds_a_scale_that_it_can_read(name: str) -> None:
    [scaler] = [each for each in documents(name) if "scaleTargetRef" in each.get("spec", {})]
    target = only(name, "LightLLMDeployment")
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": target["apiVersion"],
        "kind": target["kind"],
        "name": target["metadata"]["name"],
    }
    assert "replicas" in target["spec"]
    assert "autoscaling" not in target["spec"]


@pytest.mark.parametrize("name", ["hpa", "keda", "inference-pool"])
def test_the_metrics_they_name_are_the_servers(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8")
    named = {*re.findall(r"\blightllm_[a-z_]+", text)}
    assert len(named) >= 2
    assert [metric for metric in named if f'"{metric}"' not in METRICS] == []


def test_the_pool_has_the_operators_labels_and_ports() -> None:
    pool = only("inference-pool", "InferencePool")["spec"]
    name = only("inference-pool", "LightLLMDeployment")["metadata"]["name"]
    assert pool["selector"]["matchLabels"].items() <= child_labels(name, SERVER).items()
    assert len(pool["selector"]["matchLabels"]) == 3
    assert pool["targetPorts"] == [{"number": HTTP_PORT}]
    picker = only("inference-pool", "Deployment")
    [container] = picker["spec"]["template"]["spec"]["containers"]
    assert f"--model-server-metrics-port={METRICS_PORT}" in container["args"]
    service = only("inference-pool", "Service")
    assert pool["endpointPickerRef"]["name"] == service["metadata"]["name"]
    assert pool["endpointPickerRef"]["port"]["number"] == service["spec"]["ports"][0]["port"]


def test_the_list_of_examples_is_complete() -> None:
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert {*re.findall(r"\]\((\S+\.yaml)\)", readme)} == {path.name for path in EXAMPLES}
