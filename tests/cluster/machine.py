"""What the machine must offer: root, kernel features, free addresses, Debian packages."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
from pathlib import Path

from errors import ClusterError
from layout import BRIDGE, POD_RANGE, SERVICE_RANGE
from shell import run, step, succeeds

# package → a file that it brings
PACKAGES = {
    "etcd-server": "/usr/bin/etcd",
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "/usr/sbin/iptables",
    "conntrack": "/usr/sbin/conntrack",
    "buildah": "/usr/bin/buildah",
    "docker-registry": "/usr/bin/docker-registry",
    "debootstrap": "/usr/sbin/debootstrap",
    "openssl": "/usr/bin/openssl",
    "iproute2": "/usr/sbin/ip",
}
_FILE_SYSTEMS = ("overlay", "cgroup")


def check_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("a kubelet needs root: run this as root, or set KUBECONFIG and IMAGE")


def check_kernel() -> None:
    """Raises ClusterError naming each feature that is missing."""
    known = Path("/proc/filesystems").read_text(encoding="utf-8").split()
    missing = [
        name
        for name in _FILE_SYSTEMS
        if name not in known and not succeeds(["modprobe", name]) and f"{name}2" not in known
    ]
    if not succeeds(["ip", "link", "add", "lldtest0", "type", "veth", "peer", "name", "lldtest1"]):
        missing.append("veth")
    else:
        run(["ip", "link", "delete", "lldtest0"])
    if not Path("/proc/sys/net/ipv4/ip_forward").exists():
        missing.append("IPv4 forwarding")
    if missing:
        raise ClusterError(f"this kernel lacks: {', '.join(missing)}")


def check_addresses() -> None:
    """Raises ClusterError if another network of the machine overlaps with the cluster's."""
    ours = [ipaddress.ip_network(POD_RANGE), ipaddress.ip_network(SERVICE_RANGE)]
    for route in json.loads(run(["ip", "-json", "route", "show", "table", "main"]) or "[]"):
        if route["dst"] == "default" or route.get("dev") == BRIDGE:
            continue
        network = ipaddress.ip_network(route["dst"], strict=False)
        if any(network.overlaps(mine) for mine in ours):
            raise ClusterError(
                f"the route to {network} by {route.get('dev')} overlaps with the cluster's "
                f"{POD_RANGE} or {SERVICE_RANGE}"
            )


def install_packages() -> None:
    """Install with apt what is missing; raises ClusterError naming it where there is no apt."""
    missing = [package for package, path in PACKAGES.items() if not Path(path).exists()]
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
            run(["apt-get", "update", "-qq"], env=environment)
            run(
                ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
                env=environment,
            )
    finally:
        if made:
            policy.unlink()
