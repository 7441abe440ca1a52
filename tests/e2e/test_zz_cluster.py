"""The local cluster itself: repaired after kills, nothing left behind. Last, since it ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kube import deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CLI = Path(__file__).parents[1] / "cluster" / "cli.py"
# what the cluster puts on the machine, by where it would show
OURS = ("KUBE-", "CNI-", "cni-loopback-", "lld0", "lightllm-cluster", "kubepods")


def cli(command: str) -> None:
    subprocess.run([sys.executable, CLI, command], check=True)


def left_behind() -> list[str]:
    """Lines about interfaces, rules, mounts, control groups and processes that name ours, and
    sockets of a kubelet or a containerd that do not run."""
    shown = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for command in (["ip", "link"], ["iptables-save"], ["ip", "netns"])
    ]
    shown.append(Path("/proc/mounts").read_text(encoding="utf-8"))
    shown += [str(path) for path in Path("/sys/fs/cgroup").glob("*/kubepods")]
    shown += [str(path) for path in Path("/var/lib/cni").glob("results/*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if "\nState:\tZ" in (process / "status").read_text(encoding="utf-8"):
                # ended, and waits for whoever started it
                continue
            shown.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            shown.append((process / "cgroup").read_text(encoding="utf-8"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    import leftovers

    lines = [line for text in shown for line in text.splitlines()]
    ours = [line for line in lines if any(name in line for name in OURS) and "pytest" not in line]
    return [*ours, *map(str, leftovers.dead_sockets())]


def test_killed_parts_come_back(kube):
    import layout

    for name in ("kubelet", "kube-scheduler", "coredns"):
        noted = json.loads((layout.PIDS / name).read_text(encoding="utf-8"))
        os.kill(noted["pid"], signal.SIGKILL)
    cli("up")
    kube.apply(deployment_of("demo"))
    kube.wait_condition("demo", "Ready", "True", timeout=120)


def test_down_leaves_nothing(operator):
    cli("down")
    assert left_behind() == []


def test_an_up_that_was_killed_leaves_nothing_after_down():
    up = subprocess.Popen([sys.executable, CLI, "up"])
    time.sleep(4)
    up.kill()
    up.wait()
    cli("down")
    assert left_behind() == []


def test_what_was_ended_comes_up_again():
    import leftovers

    before = leftovers.fixed_paths()
    cli("up")
    cli("down")
    assert left_behind() == []
    assert leftovers.fixed_paths() == before
