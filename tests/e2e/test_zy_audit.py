"""What the operator may do and what it did, by the API server's audit log of all tests before."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

Granted = set[tuple[str, str, str]]

BINDINGS = ("clusterrolebindings", "rolebindings")
# the API server's authorizer hears of a binding a moment after it was made
AUTHORIZER_DELAY = timedelta(seconds=2)


def granted(operator) -> Granted:
    """(group, resource, verb) of the operator's roles."""
    found = set()
    for kind, name in (("clusterrole", "lightllm"), ("role", "lightllm-leader")):
        for rule in operator.get(kind, name)["rules"]:
            found |= {
                (group, resource, verb)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return found


def uninstalled(events) -> list[tuple[datetime, datetime]]:
    """From the deletion of a binding of the operator's to its next creation: during an uninstall
    the operator outlives its rights by the moment that it takes to end."""
    spans, deleted = [], {}
    for event in events:
        target = event["objectRef"]
        name = target.get("name", "")
        if target["resource"] not in BINDINGS or not name.startswith("lightllm"):
            continue
        if event["verb"] == "delete":
            deleted[name] = moment_of(event)
        elif code_of(event) == 201 and name in deleted:
            spans.append((deleted.pop(name), moment_of(event) + AUTHORIZER_DELAY))
    return spans


def code_of(event) -> int | None:
    return event.get("responseStatus", {}).get("code")


def moment_of(event) -> datetime:
    return datetime.fromisoformat(event["requestReceivedTimestamp"])


def test_every_granted_verb_is_used_and_nothing_else_was_tried(operator):
    import layout

    user = f"system:serviceaccount:{operator.namespace}:lightllm"
    # the API server may be in the middle of a line
    text = (layout.LOGS / "audit.log").read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    events = [event for event in map(json.loads, lines) if "objectRef" in event]
    without_rights = uninstalled(events)
    used, refused = set(), []
    for event in events:
        if event["user"]["username"] != user:
            continue
        target = event["objectRef"]
        resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
        used.add((target.get("apiGroup", ""), resource, event["verb"]))
        if code_of(event) == 201:
            # server-side apply has made what was not there, which needs the right to create too
            used.add((target.get("apiGroup", ""), resource, "create"))
        # 403 alone would count what admission refuses in a namespace that ends
        decision = event.get("annotations", {}).get("authorization.k8s.io/decision")
        # what priority and fairness turned away (429) was not decided
        if decision != "allow" and code_of(event) != 429:
            moment = moment_of(event)
            if not any(start <= moment <= end for start, end in without_rights):
                refused.append(event["requestURI"])
    assert refused == []
    rights = granted(operator)
    assert len(rights) > 10
    assert used == rights
    assert not any(resource.startswith("secrets") for _, resource, _ in rights)
