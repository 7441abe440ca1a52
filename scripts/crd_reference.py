"""Make docs/crd.md from the CRD and `crd_conditions.yaml`, and the chart's copy of the CRD."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CRD = ROOT / "crds" / "lightllmdeployments.serving.lightllm.io.yaml"
CHART_COPY = ROOT / "charts" / "lightllm-operator" / "files" / "crd.yaml"
CONDITIONS = Path(__file__).with_name("crd_conditions.yaml")
PAGE = ROOT / "docs" / "crd.md"

Schema = Mapping[str, Any]

_HEAD = """\
# LightLLMDeployment

Made by `make docs` from `crds/lightllmdeployments.serving.lightllm.io.yaml`; edit that.

Group `{group}`, version `{version}`, namespaced; short name `{short}`, category
`{category}` (`kubectl get {category}`; `kubectl delete all` leaves it alone). Fields without a
default may be absent unless they are marked *required*. Unknown fields are refused by kubectl;
other clients see them dropped unless they ask for strict validation.
"""

_SCALE = """\
## Subresources

`status` is written by the operator alone and never raises `metadata.generation`. `scale` reads and
writes `{specReplicasPath}`, reports `{statusReplicasPath}` and the selector of the serving pods,
for `kubectl scale`, an HPA or KEDA. An HPA reads before it writes, and the API server answers 500
while `spec.replicas` is absent: set it once. With `spec.autoscaling` every write through `scale` is
refused, so that two scalers never fight.
"""


def page(crd: Schema, conditions: Mapping[str, Schema]) -> str:
    """The whole page."""
    names, [version] = crd["spec"]["names"], crd["spec"]["versions"]
    root = version["schema"]["openAPIV3Schema"]
    head = _HEAD.format(
        group=crd["spec"]["group"],
        version=version["name"],
        short=names["shortNames"][0],
        category=names["categories"][0],
    )
    blocks = [head, *_rules(root, "Rules for the object:")]
    blocks += _sections("spec", root["properties"]["spec"], depth=2)
    blocks += _sections("status", root["properties"]["status"], depth=2)
    blocks.append(_SCALE.format(**version["subresources"]["scale"]))
    blocks.append("## Columns of `kubectl get lld`\n")
    blocks.append(_columns(version["additionalPrinterColumns"]))
    blocks.append("## Conditions\n")
    blocks += _conditions(conditions)
    return "\n".join(blocks)


def _sections(path: str, schema: Schema, depth: int) -> Iterator[str]:
    """One table for an object with fields of its own, then those of its fields."""
    yield f"{'#' * depth} {path}\n"
    yield f"{schema['description']}\n"
    yield from _rules(schema)
    required = schema.get("required", ())
    rows = [
        (
            f"`{name}`" + (" *required*" if name in required else ""),
            _linked(_type(child), f"{path}.{name}", child),
            _default(child),
            _bounds(child),
            _cell(child.get("description", "")),
        )
        for name, child in schema["properties"].items()
    ]
    yield _table(("field", "type", "default", "bounds", "what it is"), rows)
    for name, child in schema["properties"].items():
        if "properties" in child:
            yield from _sections(f"{path}.{name}", child, 3)
        elif "properties" in child.get("items", {}):
            items = {"description": child["description"], **child["items"]}
            yield from _sections(f"{path}.{name}[]", items, 3)


def _rules(schema: Schema, title: str = "Rules:") -> Iterator[str]:
    rules = schema.get("x-kubernetes-validations", ())
    if rules:
        lines = [f"- {_cell(rule['message'])}" for rule in rules]
        yield f"{title}\n\n" + "\n".join(lines) + "\n"


def _type(schema: Schema) -> str:
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "items" in schema:
        return f"list of {_type(schema['items'])}s"
    values = schema.get("additionalProperties")
    if values:
        return f"map to {_type(values)}"
    return "time" if schema.get("format") == "date-time" else str(schema["type"])


def _linked(kind: str, path: str, schema: Schema) -> str:
    """With a link to the section that the fields have, if any."""
    if "properties" not in schema and "properties" not in schema.get("items", {}):
        return kind
    return f"[{kind}](#{path.replace('.', '').lower()})"


def _default(schema: Schema) -> str:
    value = schema.get("default", {})
    if value == {}:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _bounds(schema: Schema) -> str:
    inner = schema.get("items") or schema.get("additionalProperties") or {}
    parts = []
    if "enum" in schema:
        parts.append(", ".join(f"`{value}`" for value in schema["enum"]))
    parts += _range(schema, "minimum", "maximum", "")
    parts += _range(schema, "minLength", "maxLength", " characters")
    parts += _range(schema, "minItems", "maxItems", " items")
    parts += _range(schema, "minProperties", "maxProperties", " entries")
    if "pattern" in schema:
        parts.append(f"`{_cell(schema['pattern'])}`")
    if "properties" not in inner and (each := _bounds(inner) if inner else ""):
        parts.append(f"each {each}")
    return "; ".join(parts)


def _range(schema: Schema, low: str, high: str, unit: str) -> list[str]:
    least, most = schema.get(low), schema.get(high)
    if least is None and most is None:
        return []
    if most is None:
        return [f"at least {least}{unit}"]
    if least is None:
        return [f"at most {most}{unit}"]
    return [f"{least} to {most}{unit}" if least != most else f"{most}{unit}"]


def _columns(columns: list[Schema]) -> str:
    rows = [
        (
            f"{column['name'].upper()}" + (" (`-o wide`)" if column.get("priority") else ""),
            f"`{_cell(column['jsonPath'])}`",
            column.get("description", "age of the resource"),
        )
        for column in columns
    ]
    return _table(("column", "from", "what it is"), rows)


def _conditions(conditions: Mapping[str, Schema]) -> Iterator[str]:
    for name, condition in conditions.items():
        yield f"### {name}\n"
        yield f"{condition['about']}\n"
        rows = [
            (f"`{reason}`", entry["status"], _cell(entry["means"]))
            for reason, entry in condition["reasons"].items()
        ]
        yield _table(("reason", "status", "what it means, what to do"), rows)
        if "also" in condition:
            yield f"{condition['also']}\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def current_page() -> str:
    """The page as the committed files make it."""
    crd = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    return page(crd, yaml.safe_load(CONDITIONS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    PAGE.write_text(current_page(), encoding="utf-8")
    CHART_COPY.write_bytes(CRD.read_bytes())
