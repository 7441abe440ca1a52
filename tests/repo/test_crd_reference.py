"""docs/crd.md is what the CRD and the operator's source say."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OPERATOR = ROOT / "operator" / "lightllm_operator"
# where a reason is the first argument, and the conditions that it may be of
RAISED = {"PodProblem": ("Available", "ModelAvailable"), "RefusedError": ("ConfigValid",)}
# values of `Decision` that become reasons
DECIDED = {"held": "ScalingActive", "limited": "ScalingLimited"}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    path = ROOT / "scripts" / "crd_reference.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented() -> dict[str, dict[str, str]]:
    """Status by reason by condition."""
    text = (ROOT / "scripts" / "crd_conditions.yaml").read_text(encoding="utf-8")
    return {
        name: {reason: entry["status"] for reason, entry in condition["reasons"].items()}
        for name, condition in yaml.safe_load(text).items()
    }


def words(node: ast.AST) -> set[str]:
    """String constants that could be a reason."""
    constants = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
    return {c for c in constants if isinstance(c, str) and re.fullmatch(r"[A-Z][A-Za-z]+", c)}


def used() -> Iterator[tuple[tuple[str, ...], str, str | None]]:
    """(conditions of which one has it, reason, status or None) of each use in the source."""
    for path in OPERATOR.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", "")
                if name == "_Condition":
                    kind, status, reason = node.args[:3]
                    [condition] = words(kind)
                    literal = status.value if isinstance(status, ast.Constant) else None
                    yield from (((condition,), word, literal) for word in words(reason))
                elif getattr(node.func, "attr", "") == "_job_problem":
                    yield from ((RAISED["PodProblem"], w, "False") for w in words(node.args[-1]))
                elif name in RAISED:
                    yield from ((RAISED[name], word, "False") for word in words(node.args[0]))
            elif isinstance(node, ast.Assign) and path.name == "autoscale.py":
                yield from assigned(node)
            elif isinstance(node, ast.Assign) and path.name == "pods.py":
                yield from hinted(node)
            elif isinstance(node, ast.Return) and path.name in ("autoscale.py", "scaler.py"):
                yield from ((("ScalingLimited",), word, "True") for word in words(node))


def assigned(node: ast.Assign) -> Iterator[tuple[tuple[str, ...], str, None]]:
    names = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    for name in names & DECIDED.keys():
        yield from (((DECIDED[name],), word, None) for word in words(node.value))


def hinted(node: ast.Assign) -> Iterator[tuple[tuple[str, ...], str, None]]:
    """The reasons of the fetch container, which are the keys of a table."""
    if isinstance(node.value, ast.Dict) and getattr(node.targets[0], "id", "") == "_FETCH_HINTS":
        for key in node.value.keys:
            yield from ((RAISED["PodProblem"], word, None) for word in words(key))


def test_the_page_is_current(reference: ModuleType) -> None:
    page = (ROOT / "docs" / "crd.md").read_text(encoding="utf-8")
    assert page == reference.current_page(), "run `make docs`"


def test_the_page_has_every_field_bound_and_rule(reference: ModuleType) -> None:
    page = reference.current_page()
    text = reference.CRD.read_text(encoding="utf-8")
    [version] = yaml.safe_load(text)["spec"]["versions"]

    def check(schema, path: str) -> int:
        count = 0
        for rule in schema.get("x-kubernetes-validations", ()):
            assert f"- {rule['message']}\n" in page
        for name, child in schema.get("properties", {}).items():
            assert f"| `{name}`" in page, f"{path}.{name}"
            if child.get("default", {}) != {} and child["type"] != "boolean":
                assert f"| `{child['default']}` |" in page
            count += 1 + check(child, f"{path}.{name}") + check(child.get("items", {}), path)
        return count

    anchors = {re.sub(r"[^a-z]", "", h.lower()) for h in re.findall(r"^#+ (.*)$", page, re.M)}
    assert {*re.findall(r"\]\(#([a-z]+)\)", page)} <= anchors
    root = version["schema"]["openAPIV3Schema"]["properties"]
    assert check(root["spec"], "spec") > 60
    assert check(root["status"], "status") > 20


def test_every_reason_of_the_source_is_explained() -> None:
    table, uses = documented(), list(used())
    assert len({reason for _, reason, _ in uses}) > 30
    missing = [
        (conditions, reason)
        for conditions, reason, _ in uses
        if not any(reason in table.get(condition, {}) for condition in conditions)
    ]
    assert missing == []


def test_every_explained_reason_is_in_the_source_with_that_status() -> None:
    uses = list(used())
    for condition, reasons in documented().items():
        for reason, status in reasons.items():
            found = [s for conditions, r, s in uses if r == reason and condition in conditions]
            assert found, f"{condition}: {reason}"
            assert {*found} & {status, None}, f"{condition}: {reason}: {found}"


def test_the_conditions_of_the_source_are_all_there() -> None:
    source = (OPERATOR / "status.py").read_text(encoding="utf-8")
    calls = re.findall(r'_Condition\(\s*"([A-Za-z]+)"', source)
    assert {*calls} == {*documented()}
