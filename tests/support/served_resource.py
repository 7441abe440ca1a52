"""A resource on a control plane without nodes, whose pods a fake kubelet brings to serve."""

from __future__ import annotations

import time
from collections.abc import Callable

from fake_kubelet import FakeKubelet
from kube import condition
from rest import Rest
from server_process import wait_until

__all__ = ["Serving"]


class Serving:
    """The resource `demo` in a namespace of its own, and what is there of it."""

    def __init__(self, rest: Rest, namespace: str, report: str) -> None:
        self.rest, self.namespace = rest, namespace
        self._kubelet = FakeKubelet(rest, namespace, report)
        self._path = (
            f"/apis/serving.lightllm.io/v1alpha1/namespaces/{namespace}/lightllmdeployments"
        )
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        rest("POST", "/api/v1/namespaces", manifest).expect(201)
        self.starts: Callable[[dict], bool] = lambda pod: True

    def create(self, **spec: object) -> None:
        manifest = {
            "apiVersion": "serving.lightllm.io/v1alpha1",
            "kind": "LightLLMDeployment",
            "metadata": {"name": "demo"},
            "spec": {"model": {"uri": "file:///models/demo-model"}, **spec},
        }
        self.rest("POST", self._path, manifest).expect(201)

    def patch(self, patch: dict) -> None:
        self.rest(
            "PATCH", f"{self._path}/demo", patch, content_type="application/merge-patch+json"
        ).expect(200)

    def resource(self) -> dict:
        return self.rest("GET", f"{self._path}/demo").expect(200)

    def objects(self, path: str) -> list[dict]:
        """path: of the kind, with {} for the namespace."""
        return self.rest("GET", path.format(self.namespace)).expect(200)["items"]

    def deployment(self) -> dict:
        [deployment] = self.deployments()
        return deployment

    def deployments(self) -> list[dict]:
        return self.objects("/apis/apps/v1/namespaces/{}/deployments")

    def jobs(self) -> list[dict]:
        return self.objects("/apis/batch/v1/namespaces/{}/jobs")

    def pods(self) -> list[dict]:
        pods = self.objects("/api/v1/namespaces/{}/pods")
        component = "app.kubernetes.io/component"
        return [pod for pod in pods if pod["metadata"]["labels"][component] == "server"]

    def uids(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.pods()}

    def template(self) -> dict:
        return self.deployment()["spec"]["template"]

    def is_settled(self) -> bool:
        """All pods of the newest generation serve, and nothing else is there."""
        body = self.resource()
        return all(
            condition(body, kind).get("status") == status
            and condition(body, kind)["observedGeneration"] == body["metadata"]["generation"]
            for kind, status in (("Ready", "True"), ("Progressing", "False"))
        )

    def wait(self, what: str, holds: Callable[[], bool]) -> None:
        def stepped() -> bool:
            self._kubelet.step(starts=self.starts)
            return holds()

        wait_until(stepped, 60, what, interval=0.05)

    def go_on(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.wait("time passes", lambda: time.monotonic() > until)

    def strategy(self) -> dict:
        return self.deployment()["spec"]["strategy"]["rollingUpdate"]

    def refuse_to_schedule(self) -> None:
        """The pods that wait are refused by the scheduler, long since."""
        for pod in self.pods():
            if pod["status"]["phase"] == "Pending":
                self._kubelet.refuse(pod, "0/1 nodes: 1 Insufficient nvidia.com/gpu.", since_s=60)

    def has_update(self) -> bool:
        return condition(self.resource(), "UpdateAvailable").get("status") == "True"

    def images(self) -> set[str]:
        return {pod["spec"]["containers"][0]["image"] for pod in self.pods()}
