"""Long-running programs of the cluster: started detached, found again by pid and start time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from errors import ClusterError, WaitedInVainError
from layout import LOGS, MARK, PIDS
from shell import wait_until

# a part is up within seconds, on a machine that has other work within minutes
_PATIENCE_S = 240.0


def _start_time(pid: int) -> int | None:
    """Clock ticks since boot at which the process began; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def _pid(name: str) -> int | None:
    try:
        noted = json.loads((PIDS / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    pid: int = noted["pid"]
    start = _start_time(pid)
    # a number may have been given to another program since
    return pid if start is not None and start == noted["start"] else None


def is_running(name: str) -> bool:
    return _pid(name) is not None


def start(
    name: str, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None
) -> bool:
    """Start it unless it runs; returns whether it had to be started. Its output goes to its log."""
    if is_running(name):
        return False
    for folder in (LOGS, PIDS):
        folder.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {}), MARK: name},
            start_new_session=True,
        )
    noted = {"pid": process.pid, "start": _start_time(process.pid)}
    temporary = PIDS / f".{name}"
    temporary.write_text(json.dumps(noted), encoding="utf-8")
    temporary.replace(PIDS / name)
    return True


def check(name: str) -> None:
    """Raises ClusterError with the end of its log if it has ended."""
    if not is_running(name):
        raise ClusterError(f"{name} has ended; {_log_end(name)}")


def wait(names: Sequence[str], is_ready: Callable[[], bool], what: str) -> None:
    """Until it is ready; raises ClusterError with the end of a log, at once if one has ended."""

    def ready() -> bool:
        for name in names:
            check(name)
        return is_ready()

    try:
        wait_until(ready, _PATIENCE_S, what)
    except WaitedInVainError as error:
        raise ClusterError("\n".join((str(error), *map(_log_end, names)))) from error


def _log_end(name: str, lines: int = 15) -> str:
    log = LOGS / f"{name}.log"
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return f"there is no {log}"
    return "\n".join((f"the end of {log}:", *text.splitlines()[-lines:]))


def stop(name: str, timeout: float = 15.0) -> None:
    """SIGTERM, then SIGKILL; nothing if it does not run."""
    pid = _pid(name)
    if pid is not None:
        _signal(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while _pid(name) is not None:
            if time.monotonic() > deadline:
                _signal(pid, signal.SIGKILL)
            _reap(pid)
            time.sleep(0.05)
    (PIDS / name).unlink(missing_ok=True)


def _signal(pid: int, number: signal.Signals) -> None:
    # it may have ended since it was looked up
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def names() -> list[str]:
    """All that were started and not stopped, running or not."""
    return sorted(path.name for path in PIDS.glob("[!.]*")) if PIDS.is_dir() else []
