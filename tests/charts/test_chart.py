"""The chart as helm renders it, in both modes; deploy/install.yaml is that rendering."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "lightllm-operator"
ROLES_FOR_PEOPLE = ("view", "edit", "admin")
MONITORING = ("--api-versions", "monitoring.coreos.com/v1")

pytestmark = pytest.mark.slow

sys.path.insert(0, str(ROOT / "tests" / "cluster"))


@pytest.fixture(scope="module")
def helm() -> Path:
    import binaries

    binaries.build(["helm"])
    return binaries.program("helm")


@pytest.fixture
def render(helm: Path):
    """Objects by (kind, namespace or "", name), for values as `--set` takes them."""

    def call(*arguments: str, **values: Any) -> dict[tuple[str, str, str], Any]:
        sets = [f"--set-json={name}={json.dumps(value)}" for name, value in values.items()]
        done = template(helm, *arguments, *sets)
        assert done.returncode == 0, done.stderr
        objects = [each for each in yaml.safe_load_all(done.stdout) if each]
        keys = [
            (o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]) for o in objects
        ]
        assert len(keys) == len({*keys})
        return dict(zip(keys, objects, strict=True))

    return call


def template(helm: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(helm), "template", "lightllm", str(CHART), "--namespace=system", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def paths(value: Any, prefix: str = "") -> list[str]:
    """`image.tag`: every value, an empty map or list included."""
    if isinstance(value, Mapping) and value:
        return [p for key, v in value.items() for p in paths(v, f"{prefix}.{key}".lstrip("."))]
    return [prefix]


def test_it_passes_lint(helm: Path) -> None:
    command = [str(helm), "lint", "--strict", str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_cluster_wide(render) -> None:
    objects = render()
    assert {kind for kind, _, _ in objects} == {
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "ServiceAccount",
        # the leader's lease
        *({"Role", "RoleBinding"} & {kind for kind, _, _ in objects}),
    }
    binding = objects["ClusterRoleBinding", "", "lightllm"]
    account = {"kind": "ServiceAccount", "name": "lightllm", "namespace": "system"}
    assert binding["subjects"] == [account]
    nodes = [
        r for r in objects["ClusterRole", "", "lightllm"]["rules"] if "nodes" in r["resources"]
    ]
    assert [r["verbs"] for r in nodes] == [["list"]]


def test_one_namespace(render) -> None:
    objects = render(watchNamespace="team")
    granted = objects["Role", "team", "lightllm"]["rules"]
    assert not [rule for rule in granted if "nodes" in rule["resources"]]
    assert objects["RoleBinding", "team", "lightllm"]["subjects"][0]["namespace"] == "system"
    assert [name for kind, _, name in objects if kind.startswith("ClusterRole")] == [
        "lightllm-view",
        "lightllm-edit",
        "lightllm-admin",
    ]
    environment = container(objects)["env"]
    assert {"name": "LIGHTLLM_NAMESPACE", "value": "team"} in environment


def container(objects) -> dict[str, Any]:
    [only] = objects["Deployment", "system", "lightllm"]["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("mode", [{}, {"watchNamespace": "team"}])
def test_no_right_is_broader_than_needed(render, mode) -> None:
    roles = [o for (kind, _, _), o in render(**mode).items() if kind in ("ClusterRole", "Role")]
    assert len(roles) >= 4
    for role in roles:
        for rule in role["rules"]:
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not words & {"*", "secrets", "pods/exec", "pods/log", "serviceaccounts/token"}
            assert not words & {"escalate", "bind", "impersonate", "rbac.authorization.k8s.io"}


def test_the_operators_pod_is_restricted(render) -> None:
    pod = render()["Deployment", "system", "lightllm"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container(render())["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert all(set(volume) <= {"name", "emptyDir"} for volume in pod["volumes"])


def test_the_crd_is_the_source_and_is_kept(render) -> None:
    name = "lightllmdeployments.serving.lightllm.io"
    crd = render()["CustomResourceDefinition", "", name]
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == yaml.safe_load((ROOT / "crds" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert "CustomResourceDefinition" not in {kind for kind, _, _ in render(crd={"enabled": False})}


def test_roles_for_people(render) -> None:
    def aggregated(**values: bool) -> dict[str, set[str]]:
        objects = render(aggregatedRoles=values)
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        return {
            role: {
                label.removeprefix(prefix)
                for label in objects["ClusterRole", "", f"lightllm-{role}"]["metadata"]["labels"]
                if label.startswith(prefix)
            }
            for role in ROLES_FOR_PEOPLE
        }

    reads = {"view", "edit", "admin"}
    assert aggregated() == {"view": reads, "edit": set(), "admin": set()}
    assert aggregated(edit=True, admin=True, view=False) == {
        "view": set(),
        "edit": {"edit"},
        "admin": {"admin"},
    }
    verbs = [rule["verbs"] for rule in render()["ClusterRole", "", "lightllm-view"]["rules"]]
    assert {verb for each in verbs for verb in each} == {"get", "list", "watch"}


def test_monitors_only_where_the_cluster_knows_them(render) -> None:
    wanted = {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}
    wanted["podMonitor"] = {"enabled": True}
    bare = {*render()}
    assert {*render(**wanted)} == {*render(*MONITORING)} == bare
    objects = render(*MONITORING, **wanted)
    assert {*objects} - bare == {
        ("Service", "system", "lightllm-metrics"),
        ("ServiceMonitor", "system", "lightllm"),
        ("PodMonitor", "system", "lightllm-serving"),
    }
    monitor = objects["ServiceMonitor", "system", "lightllm"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    service = objects["Service", "system", "lightllm-metrics"]
    assert selects(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
    pod = objects["Deployment", "system", "lightllm"]["spec"]["template"]
    assert selects(service["spec"]["selector"], pod["metadata"]["labels"])
    [port], [endpoint] = service["spec"]["ports"], monitor["spec"]["endpoints"]
    assert endpoint["port"] == port["name"]
    named = {p["name"]: p["containerPort"] for p in container(objects)["ports"]}
    assert named[port["targetPort"]] == port["port"]


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def picks(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A label selector of which only `In` is used."""
    among = selector.get("matchExpressions", ())
    assert {each["operator"] for each in among} <= {"In"}
    return selects(selector["matchLabels"], labels) and all(
        labels.get(each["key"]) in each["values"] for each in among
    )


def test_the_selectors_of_serving_pods_are_the_operators(render) -> None:
    from lightllm_operator.names import (
        CHECK,
        FETCH,
        HTTP_PORT,
        METRICS_PORT,
        SERVER,
        child_labels,
    )

    values = {"podMonitor": {"enabled": True}, "watchNamespace": "team"}
    objects = render(*MONITORING, **values, networkPolicy={"enabled": True})
    labels = child_labels("demo", SERVER)
    monitor = objects["PodMonitor", "system", "lightllm-serving"]["spec"]
    assert selects(monitor["selector"]["matchLabels"], labels)
    assert monitor["namespaceSelector"] == {"matchNames": ["team"]}
    policy = objects["NetworkPolicy", "team", "lightllm-serving"]["spec"]
    assert selects(policy["podSelector"]["matchLabels"], labels)
    assert [rule["ports"] for rule in policy["ingress"]] == [
        [{"port": HTTP_PORT}],
        [{"port": METRICS_PORT}],
    ]
    own = objects["NetworkPolicy", "system", "lightllm"]["spec"]
    [asked] = [rule for rule in own["egress"] if rule["ports"] == [{"port": METRICS_PORT}]]
    [peer] = asked["to"]
    for component, is_asked in ((SERVER, True), (FETCH, True), (CHECK, False)):
        assert picks(peer["podSelector"], child_labels("demo", component)) == is_asked
    fetching = child_labels("demo", FETCH)
    assert selects(policy["podSelector"]["matchLabels"], fetching)
    template_labels = objects["Deployment", "system", "lightllm"]["spec"]["template"]["metadata"]
    [from_operator] = policy["ingress"][1]["from"]
    assert selects(from_operator["podSelector"]["matchLabels"], template_labels["labels"])


def test_network_policies_of_named_namespaces(render) -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "web"}}}
    monitoring = {"namespaceSelector": {"matchLabels": {"team": "ops"}}}
    egress = {"ports": [{"port": 443}]}
    objects = render(
        networkPolicy={
            "enabled": True,
            "servingNamespaces": ["a", "b"],
            "clients": [peer],
            "monitoring": [monitoring],
            "servingEgress": [egress],
        }
    )
    found = {(ns, name) for kind, ns, name in objects if kind == "NetworkPolicy"}
    assert found == {("system", "lightllm"), ("a", "lightllm-serving"), ("b", "lightllm-serving")}
    spec = objects["NetworkPolicy", "a", "lightllm-serving"]["spec"]
    assert spec["ingress"][0]["from"] == [peer]
    assert spec["ingress"][1]["from"][1:] == [monitoring]
    assert spec["egress"][1:] == [egress]
    own = objects["NetworkPolicy", "system", "lightllm"]["spec"]
    assert own["ingress"] == [{"from": [monitoring], "ports": [{"port": 8080}]}]
    assert not [o for o in render() if o[0] == "NetworkPolicy"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("replicaCount=2", "replicaCount"),
        ("image.repositry=x", "repositry"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.tag=a b", "tag"),
        ("serving.image=", "image"),
        ("watchNamespace=A_b", "watchNamespace"),
        ("cpuForGpu=maybe", "cpuForGpu"),
        ("serviceMonitor.interval=often", "interval"),
        ("networkPolicy.clients[0].podSelektor=x", "podSelektor"),
        ("aggregatedRoles.owner=true", "owner"),
        ("resources.request.cpu=1", "request"),
    ],
)
def test_the_schema_refuses_what_no_template_reads(helm: Path, setting: str, said: str) -> None:
    done = template(helm, f"--set={setting}")
    assert done.returncode != 0
    assert said in done.stderr


def test_the_schema_knows_every_value_and_nothing_else_is_let_in() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))

    def objects(node: Any, path: str):
        if isinstance(node, Mapping):
            if "properties" in node:
                yield path, node
            for key, child in node.items():
                yield from objects(child, f"{path}.{key}")

    found = dict(objects(schema, ""))
    assert len(found) > 8
    assert [path for path, node in found.items() if node.get("additionalProperties", True)] == []
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert {*values} == {*schema["properties"]} - {"global"}


def test_the_readme_has_every_value() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \|", readme, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([A-Za-z.]+)`", row)}
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    listed = {p if not p.startswith("resources.") else "resources" for p in paths(values)}
    assert listed <= named
    assert named <= listed


def test_install_yaml_is_the_rendering(helm: Path) -> None:
    path = ROOT / "scripts" / "install_yaml.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    committed = module.TARGET.read_text(encoding="utf-8")
    assert committed == module.rendered(helm), "run `make install-yaml`"


def granted(role: Mapping[str, Any]) -> dict[str, set[str]]:
    """Verbs by resource."""
    verbs: dict[str, set[str]] = {}
    for rule in role["rules"]:
        for resource in rule["resources"]:
            verbs.setdefault(resource, set()).update(rule["verbs"])
    return verbs


def test_the_security_page_gives_a_reason_for_each_right(render) -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z/]+)` \| ([a-z, ]+) \| \S", page, re.MULTILINE)
    told = {resource: {*verbs.split(", ")} for resource, verbs in rows}
    roles = {}
    for (kind, _, name), role in render().items():
        if kind in ("ClusterRole", "Role") and name.rpartition("-")[2] not in ROLES_FOR_PEOPLE:
            roles |= granted(role)
    assert roles == told
    one = granted(render(watchNamespace="team")["Role", "team", "lightllm"])
    assert one.items() <= told.items()
    assert "nodes" not in one
