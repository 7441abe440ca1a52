"""The whole way on a real cluster: install the operator, apply `examples/demo.yaml`, ask the model,
and watch `kubectl get lld` while load makes it scale out and idleness scales it back in.

The cluster is the one of `tests/cluster`, brought up here; with KUBECONFIG and IMAGE (and, where
its name cannot be told from IMAGE, OPERATOR_IMAGE) it is the one that they name.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubectl import CHECKOUT, DemoError, Target, cluster_command, local_cluster, own_cluster

RELEASE, SYSTEM = "lightllm", "lightllm-system"
NAMESPACE, NAME = "lightllm-demo", "demo"
QUESTION = "What is LightLLM for Kubernetes?"
NUM_CLIENTS, LOAD_SECONDS = 16, 45
READY_TIMEOUT_S = 600.0
COLUMNS = ("seconds", "waiting", "running", "desired", "ready")


class Story:
    """The resource as `kubectl get lld` shows it, told whenever it changes, and kept. Its clock
    counts from where it is made."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._began = time.monotonic()
        self._row = ""
        self.samples: list[tuple[float, int, int, int, int]] = []

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def look(self) -> dict[str, Any]:
        """The resource now; a line if the table has changed, which is no older than what is
        returned."""
        body = self._target.get("lld", NAME, NAMESPACE)
        table = self._target.kube("get", "lld", NAME, f"--namespace={NAMESPACE}")
        header, row = (line.rsplit(maxsplit=1)[0] for line in table.splitlines())
        if row != self._row:
            if not self._row:
                print(f"  {'':7}  {header}")
            print(f"  {self.seconds():5.1f} s  {row}", flush=True)
            self._row = row
        status = body.get("status", {})
        scaling = status.get("autoscaling", {})
        counts = (status.get("desiredReplicas", 0), status.get("readyReplicas", 0))
        load = (scaling.get("waiting", 0), scaling.get("running", 0))
        self.samples.append((round(self.seconds(), 1), *load, *counts))
        return body

    def until(
        self, what: str, holds: Callable[[dict[str, Any]], bool], timeout: float = 180.0
    ) -> float:
        """Look until it is so; when that was, by the story's clock. Raises DemoError."""
        began = self.seconds()
        while not holds(body := self.look()):
            if self.seconds() - began > timeout:
                ready = json.dumps(_condition(body, "Ready"), indent=1)
                raise DemoError(f"{what}: not so after {timeout:.0f} s; Ready is {ready}")
            time.sleep(0.5)
        return self.seconds()


def _condition(body: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions = body.get("status", {}).get("conditions", ())
    return next((each for each in conditions if each["type"] == kind), {})


def _is_ready(body: dict[str, Any]) -> bool:
    condition = _condition(body, "Ready")
    current = condition.get("observedGeneration") == _generation(body)
    return current and condition["status"] == "True"


def _generation(body: dict[str, Any]) -> int:
    return int(body["metadata"]["generation"])


def _count(field: str) -> Callable[[dict[str, Any]], int]:
    return lambda body: body.get("status", {}).get(field, 0)


def install(target: Target) -> None:
    """The operator by its chart, and the namespace of the demo."""
    repository, _, tag = target.operator_image.rpartition(":")
    values = {
        "image": {
            "repository": repository,
            "tag": tag,
            "pullPolicy": "Always" if target.local else "IfNotPresent",
        },
        "serving": {"image": target.server_image},
        "cpuForGpu": target.local,
    }
    chart = str(CHECKOUT / "charts" / "lightllm-operator")
    target.run(
        *(target.helm, "upgrade", "--install", RELEASE, chart, f"--namespace={SYSTEM}"),
        *("--create-namespace", "--values=-"),
        stdin=json.dumps(values),
    )
    target.kube(
        "rollout", "status", f"deployment/{RELEASE}", f"--namespace={SYSTEM}", "--timeout=180s"
    )
    if not target.get("namespace", NAMESPACE, SYSTEM):
        target.kube("create", "namespace", NAMESPACE)
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    target.kube("label", "namespace", NAMESPACE, enforce, "--overwrite")


def start_pod(target: Target, name: str, command: list[str]) -> None:
    """A pod of the serving image beside the model's pods, that runs once."""
    restricted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    container = {
        "name": name,
        "image": target.server_image,
        "command": command,
        "securityContext": restricted,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }
    where = f"--namespace={NAMESPACE}"
    target.kube("delete", "pod", name, where, "--ignore-not-found", "--grace-period=0")
    target.kube("apply", "-f", "-", stdin=json.dumps(pod))


def phase(target: Target, name: str) -> str:
    return str(target.get("pod", name, NAMESPACE).get("status", {}).get("phase", ""))


def said(target: Target, name: str, timeout: float = 120.0) -> str:
    """What the pod printed, once it has ended. Raises DemoError."""
    deadline = time.monotonic() + timeout
    while (found := phase(target, name)) not in ("Succeeded", "Failed"):
        if time.monotonic() > deadline:
            raise DemoError(f"pod {name}: still {found or 'absent'} after {timeout:.0f} s")
        time.sleep(0.3)
    text = target.kube("logs", name, f"--namespace={NAMESPACE}")
    if found == "Failed":
        raise DemoError(f"pod {name} failed: {text.strip()[-1000:]}")
    return text


def tell(target: Target) -> tuple[list[str], Story]:
    """The demo; the lines of its report, and what was seen."""
    print("\nThe operator, from its chart")
    install(target)
    manifest = CHECKOUT / "examples" / "demo.yaml"
    print(f"\n$ kubectl apply -f {manifest.relative_to(CHECKOUT)}   (the clock counts from here)")
    before = target.get("lld", NAME, NAMESPACE)
    target.kube("apply", f"--namespace={NAMESPACE}", "-f", str(manifest))
    story = Story(target)
    ready = story.until("the model serves", _is_ready, READY_TIMEOUT_S)
    unchanged = bool(before) and _generation(story.look()) == _generation(before)
    ran = unchanged and _is_ready(before)
    report = [f"time to ready       {'it ran already' if ran else f'{ready:.1f} s'}"]
    report.append(f"answer              {textwrap.shorten(ask(target), 90, placeholder=' …')}")
    report += scale(target, story)
    return report, story


def ask(target: Target) -> str:
    """What the model answers to a pod beside it."""
    url = f"http://{NAME}.{NAMESPACE}.svc"
    print(f"\n> {QUESTION}   (a pod asks {url})")
    start_pod(target, "question", ["lightllm-client", "--url", url, "--text", QUESTION])
    answer = said(target, "question").strip()
    print(answer)
    return answer


def scale(target: Target, story: Story) -> list[str]:
    """Out by load and back in; lines of the report. Raises DemoError, also for a stream cut."""
    script = (Path(__file__).parent / "load.py").read_text(encoding="utf-8")
    options = ["--host", f"{NAME}.{NAMESPACE}.svc", "--seconds", str(LOAD_SECONDS)]
    options += ["--clients", str(NUM_CLIENTS)]
    start_pod(target, "load", ["python", "-c", script, *options])
    began = story.until("the load runs", lambda _: phase(target, "load") == "Running", 60)
    print(
        f"\nFrom {began:.1f} s on {NUM_CLIENTS} clients open streams, for {LOAD_SECONDS} s, and "
        "read each to its end.\nThe manifest lets a pod run 4 at once, so that they queue"
    )
    wanted = story.until("more pods are wanted", lambda body: _count("desiredReplicas")(body) > 1)
    serves = story.until("a second pod serves", lambda body: _count("readyReplicas")(body) > 1)
    story.until("no more streams", lambda _: story.seconds() > began + LOAD_SECONDS)
    print("\nNo new streams; those that run end, and the pods that are too many drain and go")
    ended = story.until("the load ends", lambda _: phase(target, "load") in ("Succeeded", "Failed"))
    load = json.loads(said(target, "load"))
    left = story.until(
        "one pod is left",
        lambda body: _count("desiredReplicas")(body) == _count("replicas")(body) == 1,
    )
    if load["cut"]:
        raise DemoError(f"{load['cut']} streams were cut: {load['faults']}")
    return [
        f"load                from {began:.1f} s on; its last stream ended at {ended:.1f} s",
        f"scale-out           wanted at {wanted:.1f} s ({wanted - began:.1f} s into the load), "
        f"served at {serves:.1f} s ({serves - began:.1f} s)",
        f"scale-in            one pod again at {left:.1f} s ({left - ended:.1f} s after the load)",
        f"streams             {load['ended']} ended well; cut: {load['cut']}",
    ]


def down(target: Target | None) -> None:
    """Take back what the demo made; on a cluster of the user's the CRD stays."""
    if target is None:
        cluster_command("down")
        return
    target.kube("delete", "namespace", NAMESPACE, "--ignore-not-found")
    target.run(target.helm, "uninstall", RELEASE, f"--namespace={SYSTEM}", "--ignore-not-found")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--down", action="store_true", help="take back what the demo made")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="keep queue and replicas over time"
    )
    options = parser.parse_args()
    began = time.monotonic()
    try:
        own = own_cluster()
        if options.down:
            down(own)
            return
        target = own or local_cluster()
        report, story = tell(target)
    except DemoError as error:
        sys.exit(f"demo: {error}")
    if options.csv:
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *story.samples])
    print(f"\nReport (all took {time.monotonic() - began:.0f} s; moments are since kubectl apply)")
    for line in report:
        print(f"  {line}")
    if own is None:
        print("\nLook around:  export KUBECONFIG=$PWD/.cluster/kubeconfig")
        print(f"              {target.kubectl} get lld -A")
    print("Clean up:     make demo-down")


if __name__ == "__main__":
    main()
