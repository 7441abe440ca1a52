"""The local cluster as the e2e tests use it: kubectl, the objects that it shows, and load."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["RESTRICTED", "Kube", "Load", "condition", "deployment_of", "is_ready"]

SERVER_IMAGE = "127.0.0.1:5213/lightllm-server:dev"
# what Pod Security's `restricted` asks of a container
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}


class Kube:
    """One namespace of the cluster; raises AssertionError with what kubectl said."""

    def __init__(self, kubectl: Path, kubeconfig: Path, namespace: str) -> None:
        self._command = [str(kubectl), f"--kubeconfig={kubeconfig}"]
        self.namespace = namespace

    def __call__(self, *arguments: str, stdin: str | None = None, ok: bool = True) -> str:
        done = subprocess.run(
            [*self._command, f"--namespace={self.namespace}", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not ok or done.returncode == 0, f"kubectl {arguments}: {done.stderr}"
        return done.stdout if done.returncode == 0 else done.stderr

    def apply(self, manifest: dict[str, Any]) -> None:
        self("apply", "-f", "-", stdin=json.dumps(manifest))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """The object; {} if there is none."""
        text = self("get", kind, name, "-o=json", "--ignore-not-found")
        return json.loads(text) if text else {}

    def list(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        return json.loads(self("get", kind, f"--selector={selector}", "-o=json"))["items"]

    def serving_pods(self, name: str) -> list[dict[str, Any]]:
        return self.list(
            "pods", f"app.kubernetes.io/instance={name},app.kubernetes.io/component=server"
        )

    def wait(self, what: str, holds, timeout: float = 60.0) -> float:
        """Poll until `holds()`; the seconds it took."""
        began = time.monotonic()
        while not holds():
            waited = time.monotonic() - began
            if waited > timeout:
                shown = self("get", "lld,pods,jobs", "-o=wide", ok=False)
                raise AssertionError(f"{what}: not so after {waited:.0f} s\n{shown}")
            time.sleep(0.3)
        return time.monotonic() - began

    def wait_condition(
        self, name: str, kind: str, status: str, reason: str | None = None, timeout: float = 60.0
    ) -> dict[str, Any]:
        """The condition once it is so, for the newest generation."""
        found: dict[str, Any] = {}

        def holds() -> bool:
            nonlocal found
            body = self.get("lld", name)
            found = condition(body, kind)
            current = found.get("observedGeneration") == body["metadata"]["generation"]
            return current and found["status"] == status and reason in (None, found["reason"])

        self.wait(f"{name}: {kind}={status} {reason or ''}", holds, timeout)
        return found

    def run_pod(
        self, name: str, *command: str, image: str = SERVER_IMAGE, claim: str | None = None
    ) -> str:
        """What a pod prints that runs this and ends well; a claim is mounted at /models."""
        container: dict[str, Any] = {
            "name": name,
            "image": image,
            "command": list(command),
            "securityContext": RESTRICTED,
        }
        spec: dict[str, Any] = {"restartPolicy": "Never", "containers": [container]}
        if claim is not None:
            container["volumeMounts"] = [{"name": "models", "mountPath": "/models"}]
            spec["volumes"] = [{"name": "models", "persistentVolumeClaim": {"claimName": claim}}]
            spec["securityContext"] = {"fsGroup": 65532}
        metadata = {"name": name}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

        def phase() -> str:
            return self.get("pod", name)["status"].get("phase", "")

        self.wait(f"pod {name} ends", lambda: phase() in ("Succeeded", "Failed"), 90)
        said = self("logs", name)
        assert phase() == "Succeeded", said
        return said

    def ready_replicas(self, name: str) -> int:
        return self.get("lld", name).get("status", {}).get("readyReplicas", 0)

    def restarts(self, name: str) -> dict[str, int]:
        """Restarts by uid, of the serving pods that run."""
        return {
            pod["metadata"]["uid"]: sum(
                c["restartCount"] for c in pod["status"]["containerStatuses"]
            )
            for pod in self.serving_pods(name)
            if "containerStatuses" in pod["status"]
        }

    def address(self, name: str) -> str:
        """The Service's cluster address, which the host reaches too, once the proxy knows a pod."""
        address = self.get("service", name)["spec"]["clusterIP"]
        self.wait(f"{name} at {address}:80", lambda: _is_open(address, 80), 30)
        return address


def _is_open(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


def condition(body: dict[str, Any], kind: str) -> dict[str, Any]:
    conditions = body.get("status", {}).get("conditions", ())
    return next((c for c in conditions if c["type"] == kind), {})


def is_ready(pod: dict[str, Any]) -> bool:
    """As the Service sees it: a pod that drains is not."""
    conditions = pod["status"].get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def deployment_of(name: str, **spec: Any) -> dict[str, Any]:
    """A small `LightLLMDeployment` on the demo model."""
    return {
        "apiVersion": "serving.lightllm.io/v1alpha1",
        "kind": "LightLLMDeployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "file:///models/demo-model"},
            "drainTimeoutSeconds": 30,
            "resources": {"requests": {"cpu": "50m", "memory": "700Mi"}},
            **spec,
        },
    }


class Load:
    """Clients with keep-alive that never retry; `failures` says what failed."""

    def __init__(self, address: str, clients: int, max_new_tokens: int = 30) -> None:
        self._address = address
        self._body = json.dumps(
            {
                "inputs": "What is TokenAttention?",
                "parameters": {"max_new_tokens": max_new_tokens, "ignore_eos": True},
            }
        )
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        self._lock = threading.Lock()
        self.num_answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=120)
        while not self._stop.is_set():
            try:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/generate", self._body, headers)
                response = connection.getresponse()
                answer = response.read()
                said = "" if response.status == 200 else f"{response.status}: {answer[:300]!r}"
            except (OSError, http.client.HTTPException) as error:
                said = f"{type(error).__name__}: {error}"
                connection.close()
            with self._lock:
                self.num_answered += not said
                if said:
                    self.failures.append(said)
        connection.close()
