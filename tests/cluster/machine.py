"""What the machine must offer: root, kernel features, free addresses and ports, programs."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from errors import ClusterError
from layout import BRIDGE, POD_RANGE, SERVICE_RANGE
from shell import run, run_over_network, step, succeeds

# Debian package → a program that it brings
PACKAGES = {
    "etcd-server": "etcd",
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": "bridge",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "buildah": "buildah",
    "docker-registry": "docker-registry",
    "debootstrap": "debootstrap",
    "openssl": "openssl",
    "iproute2": "ip",
}
_CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


def cni_plugins() -> Path:
    """The folder of the CNI plugins; Debian's if there is none."""
    return next((each for each in _CNI_FOLDERS if (each / "bridge").exists()), _CNI_FOLDERS[0])


def check_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("a kubelet needs root: run this as root, or use a cluster that you have")


def check_kernel() -> None:
    """Raises ClusterError naming each feature that is missing."""
    known = Path("/proc/filesystems").read_text(encoding="utf-8").split()
    missing = []
    if "overlay" not in known and not succeeds(["modprobe", "overlay"]):
        missing.append("overlayfs")
    if not {"cgroup", "cgroup2"} & set(known):
        missing.append("cgroups")
    if not _can_add("type", "veth", "peer", "name", "lldtest1"):
        missing.append("veth interfaces")
    if not _can_add("type", "bridge"):
        missing.append("bridges")
    for table in ("filter", "nat"):
        if not succeeds(["iptables", "-t", table, "-S"]):
            missing.append(f"iptables' table {table}")
    if missing:
        raise ClusterError(f"this kernel lacks, or root may not use: {', '.join(missing)}")


def _can_add(*kind: str) -> bool:
    added = succeeds(["ip", "link", "add", "lldtest0", *kind])
    if added:
        run(["ip", "link", "delete", "lldtest0"])
    return added


def check_addresses() -> None:
    """Raises ClusterError if another network of the machine overlaps with the cluster's."""
    ours = [ipaddress.ip_network(POD_RANGE), ipaddress.ip_network(SERVICE_RANGE)]
    for route in json.loads(run(["ip", "-json", "route", "show", "table", "all"]) or "[]"):
        if route["dst"] == "default" or route.get("dev") == BRIDGE:
            continue
        network = ipaddress.ip_network(route["dst"], strict=False)
        if any(network.version == 4 and network.overlaps(mine) for mine in ours):
            raise ClusterError(
                f"the route to {network} by {route.get('dev')} overlaps with the cluster's "
                f"{POD_RANGE} or {SERVICE_RANGE}"
            )


def check_ports(ports: Mapping[tuple[str, int], str]) -> None:
    """`ports` are those wanted, with who wants them; raises ClusterError naming what is taken."""
    taken = [
        f"{address}:{port} ({program})"
        for (address, port), program in ports.items()
        if _is_taken(address, port)
    ]
    if taken:
        raise ClusterError(f"another program listens already at {', '.join(taken)}")


def _is_taken(address: str, port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def install_packages() -> None:
    """Install with apt what is missing; raises ClusterError naming it where there is no apt."""
    missing = [package for package, program in PACKAGES.items() if not _has(program)]
    if not missing:
        return
    names = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise ClusterError(f"missing programs; on Debian they come with: {names}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # a package must not start its daemon: ours are started with our own settings
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
        policy.chmod(0o755)
    try:
        with step(f"installing {names}"):
            # another apt of the machine may be at work
            apt = ("apt-get", "-qq", "-o=DPkg::Lock::Timeout=300")
            # or else an index that could not be fetched is only warned of
            strict = "-o=APT::Update::Error-Mode=any"
            run_over_network([*apt, strict, "update"], env=environment)
            install = (*apt, "install", "-y", "--no-install-recommends")
            run_over_network([*install, *missing], env=environment)
    finally:
        if made:
            policy.unlink()


def _has(program: str) -> bool:
    if program == "bridge":
        return (cni_plugins() / program).exists()
    return shutil.which(program) is not None
