"""The chart on an API server of its own: installed, upgraded with a new API, uninstalled, back."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from crd_cases import spec
from crd_schema import resources
from rest import Rest

pytestmark = pytest.mark.slow

CHART = Path(__file__).parents[2] / "charts" / "lightllm-operator"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CRD = f"{CRDS}/lightllmdeployments.serving.lightllm.io"
OPERATOR = "/apis/apps/v1/namespaces/system/deployments/lightllm"
DEMO = f"{resources('default')}/demo"


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import api_server

    with api_server.running(tmp_path_factory.mktemp("chart")) as path:
        yield path


@pytest.fixture
def helm(kubeconfig: Path):
    import binaries

    binaries.build(["helm"])
    program = binaries.program("helm")

    def call(*arguments: str | Path) -> str:
        command = [str(program), *map(str, arguments)]
        command += [f"--kubeconfig={kubeconfig}", "--namespace=system"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def with_a_new_field(folder: Path) -> Path:
    """A later version of the chart: the API has `spec.nickname`, the operator another image."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart)
    path = chart / "files" / "crd.yaml"
    crd = yaml.safe_load(path.read_text(encoding="utf-8"))
    root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    root["spec"]["properties"]["nickname"] = {"type": "string", "maxLength": 9, "default": "llm"}
    path.write_text(yaml.safe_dump(crd), encoding="utf-8")
    return chart


def fields(rest: Rest) -> dict[str, Any]:
    crd = rest("GET", CRD).expect(200)
    root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    return root["spec"]["properties"]


def test_the_api_is_upgraded_with_the_chart_and_outlives_it(
    kubeconfig: Path, helm, tmp_path: Path
) -> None:
    import shell

    notes = helm("install", "lightllm", CHART, "--create-namespace")
    assert "watches all namespaces" in notes
    with Rest(kubeconfig) as rest:

        def is_served() -> bool:
            return rest("GET", resources("default")).status == 200

        shell.wait_until(is_served, 30, "the API is served")
        made = rest("POST", resources("default"), spec()).expect(201)
        assert "nickname" not in fields(rest)

        helm("upgrade", "lightllm", with_a_new_field(tmp_path), "--set=image.tag=next")
        assert fields(rest)["nickname"]["default"] == "llm"
        operator = rest("GET", OPERATOR).expect(200)
        [container] = operator["spec"]["template"]["spec"]["containers"]
        assert container["image"].endswith(":next")
        same = rest("GET", DEMO).expect(200)["metadata"]
        assert (same["uid"], same["generation"]) == (made["metadata"]["uid"], 1)

        said = helm("uninstall", "lightllm")
        assert "kept due to the resource policy" in said
        shell.wait_until(
            lambda: rest("GET", OPERATOR).status == 404, 30, "the operator's Deployment is gone"
        )
        assert rest("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/lightllm").status == 404
        assert rest("GET", DEMO).expect(200)["metadata"]["uid"] == made["metadata"]["uid"]
        assert not rest("GET", CRD).expect(200)["metadata"].get("deletionTimestamp")

        helm("install", "lightllm", CHART)
        assert rest("GET", OPERATOR).status == 200
        assert "nickname" not in fields(rest)
        assert rest("GET", DEMO).expect(200)["metadata"]["uid"] == made["metadata"]["uid"]


def test_a_second_operator_takes_the_api_that_is_there(kubeconfig: Path, helm) -> None:
    with Rest(kubeconfig) as rest:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
        rest("POST", "/api/v1/namespaces", namespace).expect(201)
        helm("install", "second", CHART, "--set=crd.enabled=false", "--set=watchNamespace=team")
        granted = "/apis/rbac.authorization.k8s.io/v1/namespaces/team/roles/second"
        rest("GET", granted).expect(200)


def test_install_yaml_is_taken_without_helm(kubeconfig: Path) -> None:
    import binaries

    binaries.build(["kubectl"])
    command = [str(binaries.program("kubectl")), f"--kubeconfig={kubeconfig}", "apply"]
    command += ["--server-side", "--force-conflicts", "--validate=strict"]
    documents = CHART.parents[1] / "deploy" / "install.yaml"
    done = subprocess.run(
        [*command, "-f", str(documents)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("serverside-applied") == done.stdout.count("\n") >= 8


def test_network_policies_are_taken(kubeconfig: Path, helm) -> None:
    helm(
        *("upgrade", "--install", "second", CHART, "--create-namespace", "--set=crd.enabled=false"),
        *("--set=networkPolicy.enabled=true", "--set=networkPolicy.servingNamespaces={default}"),
        """--set-json=networkPolicy.servingEgress=[{"ports":[{"port":443}]}]""",
    )
    with Rest(kubeconfig) as rest:
        path = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/second-serving"
        policy = rest("GET", path).expect(200)
        assert policy["spec"]["egress"][1]["ports"] == [{"protocol": "TCP", "port": 443}]
