"""GPUs as the scheduler sees them: an extended resource and labels, without any device."""

from __future__ import annotations

import json

from control_plane import kubectl
from layout import NODE, NUM_GPUS
from shell import step

# as GPU feature discovery labels a node with A100s
LABELS = {
    "nvidia.com/gpu.present": "true",
    "nvidia.com/gpu.count": str(NUM_GPUS),
    "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
    "nvidia.com/gpu.family": "ampere",
    "nvidia.com/gpu.compute.major": "8",
    "nvidia.com/gpu.compute.minor": "0",
    "nvidia.com/gpu.memory": "81920",
}


def add() -> None:
    """Set the node's capacity and labels; the kubelet keeps both over its restarts."""
    with step(f"{NUM_GPUS} GPUs on the node, in name only: pods that get them run on the CPU"):
        patch = [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(NUM_GPUS)}]
        kubectl(
            "patch", "node", NODE, "--subresource=status", "--type=json", f"-p={json.dumps(patch)}"
        )
        labels = [f"{name}={value}" for name, value in LABELS.items()]
        kubectl("label", "node", NODE, "--overwrite", *labels)
