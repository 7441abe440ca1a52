"""CoreDNS on the node's address: names of Services, and the machine's resolvers for all others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import binaries
import daemons
import kubeconfig
from control_plane import kubectl
from layout import CONFIG, COREDNS_READY_PORT, DOMAIN, NODE_IP
from shell import answers, step

NAME = "coredns"


def _corefile(upstream: Path) -> str:
    resolvers = upstream.read_text(encoding="utf-8")
    # a machine without a network has none, and the plugin refuses an empty list
    forward = f"forward . {upstream}" if re.search(r"^nameserver\s", resolvers, re.M) else ""
    return f"""\
.:53 {{
    bind {NODE_IP}
    errors
    ready 127.0.0.1:{COREDNS_READY_PORT}
    cache 5
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {kubeconfig.path(NAME)}
        pods insecure
        ttl 5
    }}
    {forward}
}}
"""


def start() -> None:
    """Give it the right to read Services and start it; returns when it is ready."""
    with step("DNS"):
        rules = [
            {"apiGroups": [""], "resources": list(resources), "verbs": ["list", "watch"]}
            for resources in (("services", "pods", "namespaces", "endpoints"),)
        ]
        rules.append(
            {
                "apiGroups": ["discovery.k8s.io"],
                "resources": ["endpointslices"],
                "verbs": ["list", "watch"],
            }
        )
        role = _object("ClusterRole", rules=rules)
        binding = _object(
            "ClusterRoleBinding",
            roleRef={
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "lightllm:coredns",
            },
            subjects=[
                {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "User",
                    "name": "lightllm:coredns",
                }
            ],
        )
        items = {"apiVersion": "v1", "kind": "List", "items": [role, binding]}
        kubectl("apply", "-f", "-", stdin=json.dumps(items))
        kubeconfig.write(NAME)
        upstream = CONFIG / "upstream-resolv.conf"
        upstream.write_text(Path("/etc/resolv.conf").read_text(encoding="utf-8"), encoding="utf-8")
        corefile = CONFIG / "Corefile"
        corefile.write_text(_corefile(upstream), encoding="utf-8")
        daemons.start(NAME, [binaries.program("coredns"), "-conf", corefile])
        ready = f"http://127.0.0.1:{COREDNS_READY_PORT}/ready"
        daemons.wait((NAME,), lambda: answers(ready), "CoreDNS is ready")


def _object(kind: str, **fields: object) -> dict[str, object]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": "lightllm:coredns"},
        **fields,
    }
