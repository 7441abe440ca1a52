"""A default StorageClass over local volumes made beforehand, writable by any user of a pod."""

from __future__ import annotations

import json
import shutil

from control_plane import kubectl
from layout import DATA, NODE, NUM_VOLUMES, STORAGE_CLASS
from shell import step

_VOLUMES = DATA / "volumes"


def start() -> None:
    """The class, and the volumes that are missing or were given back, emptied."""
    with step(f"{NUM_VOLUMES} volumes of class {STORAGE_CLASS}"):
        known = {
            item["metadata"]["name"]: item["status"]["phase"]
            for item in json.loads(kubectl("get", "persistentvolumes", "-o=json"))["items"]
        }
        names = [f"{STORAGE_CLASS}-{index}" for index in range(NUM_VOLUMES)]
        released = [name for name in names if known.get(name) == "Released"]
        if released:
            kubectl("delete", "persistentvolumes", *released)
        missing = [name for name in names if name not in known or name in released]
        for name in missing:
            folder = _VOLUMES / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            folder.chmod(0o777)
        items = [_storage_class(), *map(_volume, missing)]
        document = {"apiVersion": "v1", "kind": "List", "items": items}
        kubectl("apply", "-f", "-", stdin=json.dumps(document))


def _storage_class() -> dict[str, object]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def _volume(name: str) -> dict[str, object]:
    on_the_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "10Gi"},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            # unlike hostPath, the kubelet gives it the pod's fsGroup
            "local": {"path": str(_VOLUMES / name)},
            "nodeAffinity": {
                "required": {"nodeSelectorTerms": [{"matchExpressions": [on_the_node]}]}
            },
        },
    }
