"""What the operator may do and what it did, by the API server's audit log of all tests before."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

Granted = set[tuple[str, str, str]]


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


def test_every_granted_verb_is_used_and_nothing_else_was_tried(operator):
    import layout

    user = f"system:serviceaccount:{operator.namespace}:lightllm"
    used, refused = set(), []
    for line in (layout.LOGS / "audit.log").read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] != user or "objectRef" not in event:
            continue
        target = event["objectRef"]
        resource = "/".join(filter(None, (target["resource"], target.get("subresource"))))
        code = event.get("responseStatus", {}).get("code")
        used.add((target.get("apiGroup", ""), resource, event["verb"]))
        if code == 201:
            # server-side apply has made what was not there, which needs the right to create too
            used.add((target.get("apiGroup", ""), resource, "create"))
        # 403 alone would count what admission refuses in a namespace that ends
        if event["annotations"]["authorization.k8s.io/decision"] != "allow":
            refused.append(event["requestURI"])
    assert refused == []
    rights = granted(operator)
    assert len(rights) > 10
    assert used == rights
    assert not any(resource.startswith("secrets") for _, resource, _ in rights)
