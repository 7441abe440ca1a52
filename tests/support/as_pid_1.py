"""Run as PID 1 of a pid namespace: a stub server adopts orphans, reaps them, stops on SIGTERM.

argv: options of the server. Prints the zombies that were seen.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import stub_roles


def _states() -> dict[int, str]:
    states = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            states[int(pid)] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
    return states


def _orphan() -> None:
    """A grandchild whose parent is gone: its parent is PID 1 now, and it ends soon."""
    subprocess.run(["/bin/sh", "-c", "sleep 0.3 & exit 0"], check=True)


def _watch() -> None:
    time.sleep(3)
    _orphan()
    time.sleep(1)
    zombies = [pid for pid, state in _states().items() if state == "Z"]
    sys.stdout.write(f"zombies: {zombies}\n")
    sys.stdout.flush()
    os.kill(1, signal.SIGTERM)


if __name__ == "__main__":
    assert os.getpid() == 1
    # ours, not the supervisor's child: started before it reaps
    if os.fork() == 0:
        _watch()
        os._exit(0)
    sys.exit(stub_roles.main())
