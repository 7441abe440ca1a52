"""A real Kubernetes on this machine: `up`, `down`, `status`, `load IMAGE`.

State lies under `.cluster/`; what is slow to make is cached outside the checkout. One cluster per
machine. Use it with `KUBECONFIG=.cluster/kubeconfig`.
"""

from __future__ import annotations

import argparse
import fcntl
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import binaries
import certificates
import control_plane
import daemons
import dns
import images
import kubeconfig
import machine
import network
import node
import storage
from errors import ClusterError
from layout import CACHE, CONFIG, DATA, KUBECONFIG, KUBERNETES_VERSION, LOGS, NAME, NODE, RUN, STATE
from shell import say, step

_LOCK = Path("/run/lock") / f"{NAME}.lock"
# stopped in this order
_DAEMONS = (
    *("kubelet", "kube-proxy", "containerd", dns.NAME, images.REGISTRY_DAEMON),
    *reversed(control_plane.NAMES),
)


@contextmanager
def _locked() -> Iterator[None]:
    """One command at a time, and one checkout's cluster per machine."""
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another command of this cluster to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        owner = DATA / "owner"
        if owner.is_file() and Path(owned := owner.read_text(encoding="utf-8")) != STATE:
            raise ClusterError(f"this machine's cluster belongs to {owned}: run `down` there first")
        yield


def up() -> None:
    """Bring everything up that is not; quick when all of it runs."""
    began = time.monotonic()
    machine.check_root()
    say(f"Kubernetes {KUBERNETES_VERSION} on this machine, logs in {LOGS}")
    machine.install_packages()
    machine.check_kernel()
    machine.check_addresses()
    binaries.build()
    for folder in (STATE, CONFIG, DATA, RUN, CACHE):
        folder.mkdir(parents=True, exist_ok=True)
    (DATA / "owner").write_text(str(STATE), encoding="utf-8")
    if not daemons.is_running("kube-apiserver"):
        # nothing signed for an earlier cluster is valid in this one
        _stop_all()
        shutil.rmtree(certificates.PKI, ignore_errors=True)
    with step("certificates"):
        certificates.make()
        kubeconfig.write("admin")
    network.up()
    control_plane.start()
    images.start_registry()
    images.make_pause()
    node.start_containerd()
    node.start()
    dns.start()
    storage.start()
    say(f"ready after {time.monotonic() - began:.0f} s: export KUBECONFIG={KUBECONFIG}")


def down() -> None:
    """End every process of ours, and take back mounts, interfaces, rules and folders."""
    machine.check_root()
    if daemons.is_running("kube-apiserver") and daemons.is_running("kubelet"):
        _delete_pods()
    _stop_all()
    with step("network, logs and certificates"):
        network.down()
        shutil.rmtree(STATE, ignore_errors=True)


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


def _stop_all() -> None:
    """The processes, then what containers left behind; etcd's data goes too."""
    with step("stopping"):
        for name in _DAEMONS:
            daemons.stop(name)
        if DATA.exists() or RUN.exists():
            node.clean_up()


def status() -> None:
    """One line per process, then the node and the pods."""
    for name in reversed(_DAEMONS):
        say(f"{name:26} {'running' if daemons.is_running(name) else 'not running'}")
    if control_plane.is_ready():
        say(control_plane.kubectl("get", "nodes,pods", "--all-namespaces", "-o=wide"))


def main() -> int:
    """Exit code 1 with one message where the machine lacks something or a part did not come up."""
    parser = argparse.ArgumentParser(prog="cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("up", help="bring the cluster up; repeated, repair it")
    commands.add_parser("down", help="end it and leave nothing behind")
    commands.add_parser("status", help="what runs")
    load = commands.add_parser("load", help="push an image of buildah's storage to the registry")
    load.add_argument("image", metavar="IMAGE")
    arguments = parser.parse_args()
    try:
        with _locked():
            match arguments.command:
                case "up":
                    up()
                case "down":
                    down()
                case "status":
                    status()
                case "load":
                    say(images.push(arguments.image))
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
