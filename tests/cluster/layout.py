"""Where the cluster's things are and how they are called: folders, addresses, ports, versions."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# one cluster per machine: its name is in every path, address and interface outside the checkout
NAME = "lightllm-cluster"

STATE = Path(os.environ.get("LIGHTLLM_CLUSTER_STATE", CHECKOUT / ".cluster"))
LOGS = STATE / "logs"
PKI = STATE / "pki"
CONFIG = STATE / "config"
KUBECONFIG = STATE / "kubeconfig"

# sockets, whose paths must be short, and what no reboot survives
RUN = Path("/run") / NAME
# kubectl's and helm's, by KUBECACHEDIR; else they fill the user's
KUBECTL_CACHE = RUN / "kubectl"
# outside the checkout: whoever deletes that must still find the processes
PIDS = RUN / "pids"
# what etcd, the kubelet and the volumes hold; gone after `down`
DATA = Path("/var/lib") / NAME
# in the environment of every process that `up` starts, and of theirs
MARK = "LIGHTLLM_CLUSTER_PROCESS"

# kept after `down`: binaries, images, base file systems
CACHE = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    / "lightllm-kubernetes"
    / "cluster"
)

KUBERNETES_VERSION = "v1.35.4"
HELM_VERSION = "v3.22.0"

BRIDGE = "lld0"
# the node, the API server and DNS are reached here, from the host and from pods
NODE_IP = "10.213.0.1"
POD_RANGE = "10.213.0.0/16"
SERVICE_RANGE = "10.214.0.0/16"
KUBERNETES_SERVICE_IP = "10.214.0.1"
DOMAIN = "cluster.local"
NODE = "lightllm-node"

API_PORT = 6443
KUBELET_PORT = 10250
API_URL = f"https://{NODE_IP}:{API_PORT}"
ETCD_CLIENT_PORT = 23790
ETCD_PEER_PORT = 23800
COREDNS_READY_PORT = 18181
REGISTRY = "127.0.0.1:5213"

NUM_GPUS = 4
NUM_VOLUMES = 24
STORAGE_CLASS = "lightllm-local"
