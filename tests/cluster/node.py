"""The node: its kubelet and kube-proxy."""

from __future__ import annotations

import json
from pathlib import Path

import binaries
import certificates
import daemons
import kubeconfig
from containerd import SOCKET
from control_plane import kubectl
from errors import ClusterError
from layout import CONFIG, DATA, DOMAIN, KUBELET_PORT, NODE, NODE_IP, POD_RANGE
from shell import answers, step

NAMES = ("kubelet", "kube-proxy")


def start() -> None:
    """kubelet and kube-proxy; returns when the node is Ready."""
    with step("kubelet and kube-proxy"):
        _start_kubelet()
        _start_kube_proxy()
        daemons.wait(NAMES, _is_ready, "the node is Ready")


def _start_kubelet() -> None:
    resolv = CONFIG / "resolv.conf"
    resolv.write_text(Path("/etc/resolv.conf").read_text(encoding="utf-8"), encoding="utf-8")
    document = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_IP,
        "port": KUBELET_PORT,
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
    # what the API server says may be from before the kubelet was killed
    if not answers("http://127.0.0.1:10248/healthz"):
        return False
    path = '{.status.conditions[?(@.type=="Ready")].status}'
    try:
        return kubectl("get", "node", NODE, f"-o=jsonpath={path}") == "True"
    except ClusterError:
        return False
