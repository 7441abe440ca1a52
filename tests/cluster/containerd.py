"""containerd with folders and a socket of its own; the images it has pulled outlast the cluster."""

from __future__ import annotations

import daemons
import machine
from layout import CACHE, CONFIG, REGISTRY, RUN
from network import CNI_CONFIG
from shell import run, step, succeeds

NAME = "containerd"
PAUSE_IMAGE = f"{REGISTRY}/pause:1"
SOCKET = RUN / "containerd.sock"


def _config() -> str:
    return f"""\
version = 2
root = "{CACHE}/containerd"
state = "{RUN}/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{RUN}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # a root without CAP_SYS_RESOURCE may not lower a process's OOM score
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{machine.cni_plugins()}"
    conf_dir = "{CNI_CONFIG}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
      Root = "{RUN}/runc"
  [plugins."io.containerd.grpc.v1.cri".registry.mirrors."{REGISTRY}"]
    endpoint = ["http://{REGISTRY}"]
"""


def start() -> None:
    """Returns when it answers."""
    with step("containerd"):
        config = CONFIG / "containerd.toml"
        config.write_text(_config(), encoding="utf-8")
        RUN.mkdir(parents=True, exist_ok=True)
        daemons.start(NAME, ["containerd", "--config", config])
        daemons.wait((NAME,), _answers, "containerd answers")


def pull(image: str) -> None:
    """Bring the node's copy up to date: pods that find one by its tag would not ask again."""
    if daemons.is_running(NAME):
        with step(f"pulling {image}"):
            client = ("ctr", "--address", SOCKET, "--namespace=k8s.io")
            run([*client, "images", "pull", "--plain-http", image])


def _answers() -> bool:
    return succeeds(["ctr", "--address", SOCKET, "version"])
