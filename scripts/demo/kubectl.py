"""kubectl and helm, on the cluster of `tests/cluster` or on one that the user has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
CLUSTER = CHECKOUT / "tests" / "cluster"


class DemoError(Exception):
    """What stopped the demo, in one message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the demo runs, and by which programs and images. local: the cluster of this checkout,
    whose GPUs are names only."""

    kubectl: str
    helm: str
    kubeconfig: Path
    operator_image: str
    server_image: str
    local: bool

    def run(self, program: str, *arguments: str, stdin: str | None = None) -> str:
        """Raises DemoError with what the program said."""
        command = [program, f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(f"{Path(program).name} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def kube(self, *arguments: str, stdin: str | None = None) -> str:
        return self.run(self.kubectl, *arguments, stdin=stdin)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """The object; {} if there is none."""
        text = self.kube(
            "get", kind, name, f"--namespace={namespace}", "-o=json", "--ignore-not-found"
        )
        found: dict[str, Any] = json.loads(text) if text else {}
        return found


def own_cluster() -> Target | None:
    """The user's, where KUBECONFIG and IMAGE name one and the serving image that it can pull."""
    kubeconfig, image = os.environ.get("KUBECONFIG"), os.environ.get("IMAGE")
    if not image:
        return None
    if not kubeconfig:
        raise DemoError("IMAGE is set: KUBECONFIG must name the cluster that can pull it")
    programs = {name: shutil.which(name) for name in ("kubectl", "helm")}
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        raise DemoError(
            f"not on PATH: {', '.join(missing)}, which a cluster of your own is reached with"
        )
    operator = os.environ.get(
        "OPERATOR_IMAGE", image.replace("lightllm-server", "lightllm-operator")
    )
    if operator == image:
        raise DemoError(
            f"OPERATOR_IMAGE: must name the operator's image, which IMAGE={image} does not tell"
        )
    return Target(
        kubectl=str(programs["kubectl"]),
        helm=str(programs["helm"]),
        kubeconfig=Path(kubeconfig),
        operator_image=operator,
        server_image=image,
        local=False,
    )


def local_cluster() -> Target:
    """Brought up here, with images of this checkout."""
    cluster_command("up")
    for target in ("operator", "server"):
        cluster_command("load", f"lightllm-{target}:dev", f"--target={target}")
    sys.path.insert(0, str(CLUSTER))
    import binaries
    import layout

    os.environ["KUBECACHEDIR"] = str(layout.KUBECTL_CACHE)
    return Target(
        kubectl=str(binaries.program("kubectl")),
        helm=str(binaries.program("helm")),
        kubeconfig=layout.KUBECONFIG,
        operator_image=f"{layout.REGISTRY}/lightllm-operator:dev",
        server_image=f"{layout.REGISTRY}/lightllm-server:dev",
        local=True,
    )


def cluster_command(*arguments: str) -> None:
    """Its messages tell what went wrong."""
    command: Sequence[str] = [sys.executable, str(CLUSTER / "cli.py"), *arguments]
    if subprocess.run(command, check=False).returncode:
        raise DemoError(
            "the local cluster cannot be used (above); without one, `make demo-server` shows the "
            "server alone, and KUBECONFIG=… IMAGE=… make demo uses a cluster that you have"
        )
