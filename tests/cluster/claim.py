"""Whose cluster it is, and what the machine was like before: what `down` must leave as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import daemons
import firewall
import leftovers
from errors import ClusterError
from layout import DATA, STATE
from shell import run

_OWNER = DATA / "owner"
_BEFORE = DATA / "before.json"
# what we, the kubelet and kube-proxy set
_SETTINGS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def check() -> None:
    """Raises ClusterError if the cluster on this machine is another checkout's."""
    try:
        owner = Path(_OWNER.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    if owner != STATE and owner.exists() and any(map(daemons.is_running, daemons.names())):
        raise ClusterError(f"this machine's cluster belongs to {owner.parent}: run `down` there")


def take() -> None:
    """Note the owner and, the first time, the machine's state; raises ClusterError."""
    DATA.mkdir(parents=True, exist_ok=True)
    if not _BEFORE.exists():
        firewall.check_free()
        before = {
            "settings": {name: _read(name) for name in _SETTINGS if _file(name).exists()},
            "chains": firewall.chains(),
            "netns": sorted(netns()),
            "paths": leftovers.fixed_paths(),
        }
        temporary = _BEFORE.with_suffix(".new")
        temporary.write_text(json.dumps(before), encoding="utf-8")
        temporary.replace(_BEFORE)
    _OWNER.write_text(str(STATE), encoding="utf-8")


def before() -> dict[str, list[str]]:
    """The iptables chains and network namespaces that were there before."""
    noted = _noted()
    return {"chains": noted.get("chains", []), "netns": noted.get("netns", [])}


def exists() -> bool:
    """Whether an `up` has begun and no `down` has ended since."""
    return DATA.exists()


def give_back() -> None:
    """The machine's settings and paths as they were, and no claim."""
    if _BEFORE.exists():
        leftovers.remove_fixed(_noted()["paths"])
    for name, value in _noted().get("settings", {}).items():
        if _read(name) != value:
            _file(name).write_text(value, encoding="ascii")
    for path in (_OWNER, _BEFORE):
        path.unlink(missing_ok=True)
    if DATA.exists() and not any(DATA.iterdir()):
        DATA.rmdir()


def netns() -> set[str]:
    """Names of the machine's network namespaces."""
    return {each["name"] for each in json.loads(run(["ip", "-json", "netns", "list"]) or "[]")}


def _noted() -> dict[str, Any]:
    try:
        noted: dict[str, Any] = json.loads(_BEFORE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return noted


def _file(name: str) -> Path:
    return Path("/proc/sys") / name


def _read(name: str) -> str:
    return _file(name).read_text(encoding="ascii")
