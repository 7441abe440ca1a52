"""The pods' bridge and CNI configuration, and taking back what they and kube-proxy set up."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from layout import BRIDGE, CONFIG, NODE_IP, POD_RANGE, RUN
from shell import run, step, succeeds

CNI_CONFIG = CONFIG / "cni"
_PREFIX = POD_RANGE.partition("/")[2]
_CNI_CACHE = Path("/var/lib/cni")
# chains of kube-proxy, the kubelet and the CNI plugins
_OUR_CHAINS = ("KUBE-", "CNI-")


def up() -> None:
    """The bridge with the node's address, forwarding on, the CNI configuration in place."""
    with step(f"bridge {BRIDGE}"):
        if not succeeds(["ip", "link", "show", BRIDGE]):
            run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "address", "replace", f"{NODE_IP}/{_PREFIX}", "dev", BRIDGE])
        run(["ip", "link", "set", BRIDGE, "up"])
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")
        CNI_CONFIG.mkdir(parents=True, exist_ok=True)
        plugins = [
            {
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
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]
        document = {"cniVersion": "1.0.0", "name": BRIDGE, "plugins": plugins}
        (CNI_CONFIG / "10-bridge.conflist").write_text(json.dumps(document), encoding="utf-8")


def down() -> None:
    """Remove pods' interfaces, the bridge, our iptables chains and the CNI results."""
    for link in json.loads(run(["ip", "-json", "link", "show"])):
        if link.get("master") == BRIDGE:
            subprocess.run(["ip", "link", "delete", link["ifname"]], check=False)
    if succeeds(["ip", "link", "show", BRIDGE]):
        run(["ip", "link", "delete", BRIDGE])
    for name in json.loads(run(["ip", "-json", "netns", "list"]) or "[]"):
        if name["name"].startswith("cni-"):
            run(["ip", "netns", "delete", name["name"]])
    for family in ("iptables", "ip6tables"):
        _drop_chains(family)
    for entry in _CNI_CACHE.glob(f"results/{BRIDGE}-*"):
        entry.unlink()


def _drop_chains(family: str) -> None:
    """Load the tables again without our chains and the rules that jump to them."""
    if not succeeds([family, "--version"]):
        return
    saved = run([f"{family}-save"]).splitlines()
    kept = [line for line in saved if not _is_ours(line)]
    if len(kept) < len(saved):
        run([f"{family}-restore"], stdin="\n".join(kept) + "\n")


def _is_ours(line: str) -> bool:
    words = line.split()
    names = [words[0][1:]] if line.startswith(":") else words[1:2]
    names += [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("-j", "-g")]
    return any(name.startswith(_OUR_CHAINS) for name in names)
