"""A real Kubernetes on this machine, as root: etcd to kubelet, a registry, DNS, volumes, GPUs to
schedule. State and logs lie under `.cluster/`, what is slow to make in the user's cache. One
cluster per machine. Use it with `KUBECONFIG=.cluster/kubeconfig`."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import binaries
import certificates
import claim
import containerd
import control_plane
import coredns
import daemons
import gpus
import images
import kubeconfig
import leftovers
import machine
import network
import node
import storage
from errors import ClusterError
from layout import (
    API_PORT,
    CACHE,
    CONFIG,
    COREDNS_READY_PORT,
    ETCD_CLIENT_PORT,
    ETCD_PEER_PORT,
    KUBECONFIG,
    KUBECTL_CACHE,
    KUBELET_PORT,
    KUBERNETES_VERSION,
    LOGS,
    NAME,
    NODE,
    NODE_IP,
    PIDS,
    PKI,
    REGISTRY,
    STATE,
)
from shell import say, step

_LOCK = Path("/run/lock") / f"{NAME}.lock"
# stopped in this order
_DAEMONS = (
    *node.NAMES,
    *(containerd.NAME, coredns.NAME, images.REGISTRY_DAEMON),
    *reversed(control_plane.NAMES),
)
_LOOPBACK = "127.0.0.1"
_PORTS = {
    (_LOOPBACK, ETCD_CLIENT_PORT): "etcd",
    (_LOOPBACK, ETCD_PEER_PORT): "etcd",
    (NODE_IP, API_PORT): "kube-apiserver",
    (_LOOPBACK, 10257): "kube-controller-manager",
    (_LOOPBACK, 10259): "kube-scheduler",
    (NODE_IP, KUBELET_PORT): "kubelet",
    (_LOOPBACK, 10248): "kubelet",
    (_LOOPBACK, 10249): "kube-proxy",
    (_LOOPBACK, 10256): "kube-proxy",
    (_LOOPBACK, int(REGISTRY.rpartition(":")[2])): images.REGISTRY_DAEMON,
    (NODE_IP, 53): coredns.NAME,
    (_LOOPBACK, COREDNS_READY_PORT): coredns.NAME,
}


@contextmanager
def _locked() -> Iterator[None]:
    """One command at a time, of whatever checkout."""
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another command of this cluster to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        claim.check()
        yield


def up() -> None:
    """Bring up what is not; quick when all of it runs; anew where what is there cannot be used."""
    began = time.monotonic()
    machine.check_root()
    with _locked():
        say(f"Kubernetes {KUBERNETES_VERSION} on this machine, logs in {LOGS}")
        prepare()
        if not (PIDS.exists() and certificates.are_valid()):
            _end()
        claim.take()
        try:
            _start()
        except ClusterError as error:
            # a part that is there cannot be repaired, or the machine failed it for a moment
            say(f"{error}\nonce more, from nothing")
            _end()
            _start()
    say(f"ready after {time.monotonic() - began:.0f} s: export KUBECONFIG={KUBECONFIG}")


def prepare() -> None:
    """What the machine needs, once: packages and programs."""
    machine.check_root()
    machine.install_packages()
    machine.check_kernel()
    machine.check_addresses()
    CACHE.mkdir(parents=True, exist_ok=True)
    say(f"  {shutil.disk_usage(CACHE).free / 1e9:.0f} GB of disk free for {CACHE}")
    binaries.build()


def _start() -> None:
    for folder in (LOGS, CONFIG, PIDS):
        folder.mkdir(parents=True, exist_ok=True)
    if not certificates.are_valid():
        with step("certificates"):
            certificates.make()
    kubeconfig.write("admin")
    network.up()
    machine.check_ports(
        {place: name for place, name in _PORTS.items() if not daemons.is_running(name)}
    )
    control_plane.start()
    images.start_registry()
    images.make_pause()
    containerd.start()
    node.start()
    gpus.add()
    coredns.start()
    storage.start()


def down() -> None:
    """End every process of ours, and take back mounts, interfaces, rules and folders."""
    machine.check_root()
    with _locked():
        if daemons.is_running("kube-apiserver") and daemons.is_running("kubelet"):
            _delete_pods()
        _end()
        claim.give_back()
        shutil.rmtree(STATE, ignore_errors=True)
    say(
        f"what is left: Debian's packages, Go's own caches, and {CACHE.parent}, which "
        "`make cache-clean` removes"
    )


def clean_cache() -> None:
    """Remove what is slow to make: the next `up` builds it again."""
    machine.check_root()
    with _locked():
        if claim.exists():
            raise ClusterError("a cluster on this machine uses the cache: run `down` first")
        with step(f"removing {CACHE.parent}"):
            if CACHE.parent.exists():
                shutil.rmtree(CACHE.parent)


def _delete_pods() -> None:
    """Pods end by the kubelet, which takes back their mounts and interfaces; the rest is forced."""
    with step("pods"):
        try:
            control_plane.kubectl("cordon", NODE, "--request-timeout=5s")
            control_plane.kubectl(
                *("delete", "pods", "--all", "--all-namespaces", "--grace-period=1"),
                *("--timeout=20s",),
            )
        except ClusterError as error:
            say(f"({error})")


def _end() -> None:
    """The processes, then what they left behind; etcd's data and the certificates go too.

    Nothing where no `up` has begun: other software has processes and rules of such names.
    """
    if not claim.exists():
        return
    with step("ending what runs"):
        for name in _DAEMONS:
            daemons.stop(name)
    with step("mounts, interfaces and rules"):
        leftovers.clean()
        network.down()
        for folder in (PKI, CONFIG):
            shutil.rmtree(folder, ignore_errors=True)


def status() -> bool:
    """One line per process, then the node and the pods; whether all run."""
    running = {name: daemons.is_running(name) for name in reversed(_DAEMONS)}
    for name, runs in running.items():
        say(f"{name:26} {'running' if runs else 'not running'}")
    if all(running.values()) and control_plane.is_ready():
        say(control_plane.kubectl("get", "nodes,pods", "--all-namespaces", "-o=wide"))
        return True
    return False


def load(image: str, target: str | None) -> None:
    """Build the image, where a target of the Dockerfile is given, and push it."""
    machine.check_root()
    daemons.check(images.REGISTRY_DAEMON)
    if target:
        images.build(target, image)
    name = images.push(image)
    containerd.pull(name)
    say(name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cluster",
        description=__doc__,
        epilog="Programs of Kubernetes 1.35 in KUBEBUILDER_ASSETS or on PATH are used; what is "
        "missing is built with Go. Debian packages that are missing are installed with apt.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("prepare", help="install and build what `up` needs, and start nothing")
    commands.add_parser("up", help="bring it up; again: repair it, in seconds if all is well")
    commands.add_parser("down", help="end it; packages and the cache stay")
    commands.add_parser("status", help="what runs; exit code 1 if anything does not")
    commands.add_parser("clean-cache", help="remove the cache; the next `up` makes it again")
    loader = commands.add_parser(
        "load", help="push an image to the cluster's registry; prints the name for pods"
    )
    loader.add_argument(
        "image", metavar="IMAGE", help="in buildah's storage, as lightllm-server:dev"
    )
    loader.add_argument("--target", help="build IMAGE first, from this target of the Dockerfile")
    return parser.parse_args()


def main() -> int:
    """Exit code 1 with one message where the machine lacks something or a part did not come up."""
    arguments = _arguments()
    os.environ["KUBECACHEDIR"] = str(KUBECTL_CACHE)
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    try:
        match arguments.command:
            case "prepare":
                prepare()
            case "up":
                up()
            case "down":
                down()
            case "clean-cache":
                clean_cache()
            case "status":
                return 0 if status() else 1
            case "load":
                load(arguments.image, arguments.target)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "cluster: interrupted; `up` goes on from here, `down` takes all back", file=sys.stderr
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
