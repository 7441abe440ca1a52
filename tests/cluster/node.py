"""The node: containerd, kubelet and kube-proxy; its GPUs, labels and leftovers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import binaries
import certificates
import daemons
import kubeconfig
from control_plane import kubectl
from layout import (
    CACHE,
    CONFIG,
    DATA,
    DOMAIN,
    NODE,
    NODE_IP,
    NUM_GPUS,
    POD_RANGE,
    REGISTRY,
    RUN,
)
from network import CNI_CONFIG
from shell import step, succeeds, wait_until

NAMES = ("containerd", "kubelet", "kube-proxy")
PAUSE_IMAGE = f"{REGISTRY}/pause:1"
SOCKET = RUN / "containerd.sock"

# as GPU feature discovery labels a node with A100s
GPU_LABELS = {
    "nvidia.com/gpu.present": "true",
    "nvidia.com/gpu.count": str(NUM_GPUS),
    "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
    "nvidia.com/gpu.family": "ampere",
    "nvidia.com/gpu.compute.major": "8",
    "nvidia.com/gpu.compute.minor": "0",
    "nvidia.com/gpu.memory": "81920",
}

_CONTAINERD = f"""\
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
    bin_dir = "/usr/lib/cni"
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


def start_containerd() -> None:
    """containerd with its own folders and socket; its images outlast the cluster."""
    with step("containerd"):
        config = CONFIG / "containerd.toml"
        config.write_text(_CONTAINERD, encoding="utf-8")
        RUN.mkdir(parents=True, exist_ok=True)
        daemons.start("containerd", ["containerd", "--config", config])
        wait_until(_containerd_answers, 30, "containerd answers")


def _containerd_answers() -> bool:
    daemons.check("containerd")
    return succeeds(["ctr", "--address", SOCKET, "version"])


def start() -> None:
    """kubelet and kube-proxy; returns when the node is Ready, with GPUs and labels."""
    with step("kubelet and kube-proxy"):
        _start_kubelet()
        _start_kube_proxy()
        wait_until(_is_ready, 90, "the node is Ready")
    with step(f"{NUM_GPUS} GPUs on the node"):
        patch = [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(NUM_GPUS)}]
        kubectl(
            "patch", "node", NODE, "--subresource=status", "--type=json", f"-p={json.dumps(patch)}"
        )
        kubectl("label", "node", NODE, "--overwrite", *(f"{k}={v}" for k, v in GPU_LABELS.items()))


def _start_kubelet() -> None:
    resolv = CONFIG / "resolv.conf"
    resolv.write_text(Path("/etc/resolv.conf").read_text(encoding="utf-8"), encoding="utf-8")
    document = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(certificates.CA)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(certificates.certificate("kubelet")),
        "tlsPrivateKeyFile": str(certificates.key("kubelet")),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "clusterDNS": [NODE_IP],
        "clusterDomain": DOMAIN,
        "resolvConf": str(resolv),
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
        },
        "volumePluginDir": str(DATA / "volume-plugins"),
        "podLogsDir": str(DATA / "pod-logs"),
        "serializeImagePulls": False,
    }
    config = CONFIG / "kubelet.yaml"
    config.write_text(json.dumps(document, indent=1), encoding="utf-8")
    daemons.start(
        "kubelet",
        [
            binaries.program("kubelet"),
            f"--config={config}",
            f"--kubeconfig={kubeconfig.write('kubelet')}",
            f"--root-dir={DATA / 'kubelet'}",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_IP}",
        ],
    )


def _start_kube_proxy() -> None:
    daemons.start(
        "kube-proxy",
        [
            binaries.program("kube-proxy"),
            f"--kubeconfig={kubeconfig.write('kube-proxy')}",
            f"--hostname-override={NODE}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={POD_RANGE}",
            "--conntrack-max-per-core=0",
            "--metrics-bind-address=127.0.0.1:10249",
            "--healthz-bind-address=127.0.0.1:10256",
        ],
    )


def _is_ready() -> bool:
    for name in NAMES:
        daemons.check(name)
    path = '{.status.conditions[?(@.type=="Ready")].status}'
    try:
        return kubectl("get", "node", NODE, f"-o=jsonpath={path}") == "True"
    except Exception:
        return False


def clean_up() -> None:
    """What containers, the kubelet and containerd leave behind: shims, mounts, cgroups, folders."""
    _end_containers()
    for folder in (DATA, RUN, CACHE / "containerd"):
        for mount in reversed(_mounts_under(folder)):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    _remove_cgroups()
    for folder in (DATA, RUN):
        shutil.rmtree(folder, ignore_errors=True)


def _end_containers() -> None:
    """End what runc still runs for us, then the shims: their command line has our socket."""
    root = RUN / "runc" / "k8s.io"
    for container in sorted(root.glob("*")):
        subprocess.run(
            ["runc", "--root", root, "delete", "--force", container.name],
            check=False,
            capture_output=True,
        )
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"containerd-shim" in words[0] and str(SOCKET).encode() in words:
                os.kill(int(process.name), signal.SIGKILL)


def _mounts_under(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    points = [line.split()[4] for line in lines]
    return [point for point in points if point.startswith(f"{folder}/") or point == str(folder)]


def _remove_cgroups() -> None:
    for top in Path("/sys/fs/cgroup").rglob("kubepods"):
        for folder in sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True):
            _rmdir(folder)
        _rmdir(top)


def _rmdir(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
