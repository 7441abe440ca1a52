"""The pods' bridge and CNI configuration, and taking back what pods left of them."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from pathlib import Path

import claim
import firewall
from layout import BRIDGE, CONFIG, NODE_IP, POD_RANGE, RUN
from shell import run, step, succeeds

CNI_CONFIG = CONFIG / "cni"
_PREFIX = POD_RANGE.partition("/")[2]
_CNI_RESULTS = Path("/var/lib/cni/results")


def up() -> None:
    """The bridge with the node's address, forwarding on, the CNI configuration in place."""
    with step(f"bridge {BRIDGE}"):
        if not succeeds(["ip", "link", "show", BRIDGE]):
            run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "address", "replace", f"{NODE_IP}/{_PREFIX}", "dev", BRIDGE])
        run(["ip", "link", "set", BRIDGE, "up"])
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")
        CNI_CONFIG.mkdir(parents=True, exist_ok=True)
        conflist = CNI_CONFIG / "10-bridge.conflist"
        conflist.write_text(json.dumps(_conflist()), encoding="utf-8")


def _conflist() -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(RUN / "ipam"),
            "ranges": [[{"subnet": POD_RANGE}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": BRIDGE, "plugins": [bridge, ports]}


def down() -> None:
    """Remove pods' interfaces and namespaces, the bridge, our iptables rules, the CNI results."""
    before = claim.before()
    for link in json.loads(run(["ip", "-json", "link", "show"])):
        if link.get("master") == BRIDGE:
            subprocess.run(["ip", "link", "delete", link["ifname"]], check=False)
    if succeeds(["ip", "link", "show", BRIDGE]):
        run(["ip", "link", "delete", BRIDGE])
    for name in claim.netns() - set(before["netns"]):
        if name.startswith("cni-"):
            run(["ip", "netns", "delete", name])
    firewall.clean(before["chains"])
    for entry in (*_CNI_RESULTS.glob(f"{BRIDGE}-*"), *_CNI_RESULTS.glob("cni-loopback-*")):
        if entry.name.startswith(BRIDGE) or not _has_namespace(entry):
            entry.unlink()
    with suppress(OSError):
        _CNI_RESULTS.rmdir()
        _CNI_RESULTS.parent.rmdir()


def _has_namespace(result: Path) -> bool:
    """Whether the pod of a noted result may be there: loopbacks do not name their network."""
    try:
        interfaces = json.loads(result.read_text(encoding="utf-8"))["result"]["interfaces"]
        return any(Path(each["sandbox"]).exists() for each in interfaces)
    except (OSError, ValueError, KeyError, TypeError):
        return True
