"""How a process of the server is started and enters its role.

`spawn` runs in the supervisor; `main` is what the new process runs. It arms its parent-death signal
before it imports anything heavy, opens its row of the status page, beats, and calls its role.
Lives here: what all processes share. Not here: what they do, and who watches them
(`supervisor.py`).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import socket

    from lightllm_server.config import ServerConfig
    from lightllm_server.status_page import StatusPage, StatusRow

__all__ = ["ENTRY", "ROLES", "ProcessId", "main", "process_ids", "spawn", "watch_parent"]

# role -> module:function, called with (config, run_dir, page) and what `_arguments` adds
ROLES = {
    "api": "lightllm_server.api.process:run",
    "router": "lightllm_server.router.process:run",
    "rank": "lightllm_server.engine.rank_process:run",
    "detok": "lightllm_server.detok.process:run",
    "tokenize": "lightllm_server.tokenize_worker:run",
}
# -P: a torch.py in the working directory is not ours
ENTRY = (sys.executable, "-P", "-m", "lightllm_server.processes")

_PR_SET_PDEATHSIG = 1
_BEAT_S = 0.5
_PARENT_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process of the tree; `index` tells the ranks and the tokenize workers apart."""

    role: str
    index: int | None = None

    @property
    def name(self) -> str:
        """Its row on the status page and its name in the log."""
        return self.role if self.index is None else f"{self.role}-{self.index}"


def process_ids(config: ServerConfig) -> list[ProcessId]:
    """The supervisor's children; the slowest to start comes first."""
    ranks = [ProcessId("rank", rank) for rank in range(1, config.engine.tp)]
    workers = [ProcessId("tokenize", index) for index in range(config.http.tokenize_workers)]
    return [ProcessId("router"), *ranks, ProcessId("api"), ProcessId("detok"), *workers]


def spawn(
    who: ProcessId,
    run_dir: Path,
    *,
    sockets: Sequence[socket.socket] = (),
    environment: Mapping[str, str],
    entry: Sequence[str] = ENTRY,
) -> subprocess.Popen[bytes]:
    """Start one process in a group of its own, so that a terminal's Ctrl-C reaches only its parent.

    Call it on the main thread: the parent-death signal follows the thread that forked.
    """
    descriptors = [item.fileno() for item in sockets]
    arguments = ["--role", who.role, "--run-dir", str(run_dir), "--parent", str(os.getpid())]
    if who.index is not None:
        arguments += ["--index", str(who.index)]
    if descriptors:
        arguments += ["--sockets", ",".join(map(str, descriptors))]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
        [*entry, *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=descriptors,
        env=dict(environment),
        process_group=0,
    )


def _die_with_parent(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # it may have died before the signal was armed
    if os.getppid() != parent:
        os._exit(1)


def _beat_forever(row: StatusRow) -> None:
    while True:
        row.beat()
        time.sleep(_BEAT_S)


def watch_parent(page: StatusPage, parent: int) -> None:
    """Thread of every child: if the supervisor stops beating, end it and with it the whole tree.

    Of every child, since the api may end by itself before it looks. Killing the supervisor is
    enough where the parent-death signal works; a supervisor that is PID 1 of its container cannot
    be killed from inside, so the others are killed too.
    """
    # imported here like all that is not needed before the parent-death signal is armed
    import logging

    from lightllm_server.errors import EXIT_SOFTWARE
    from lightllm_server.status_page import BEAT_LIMIT_S, Field

    supervisor = page["supervisor"]
    looked = time.monotonic()
    while True:
        time.sleep(_PARENT_LOOK_S)
        late = time.monotonic() - looked > 2 * _PARENT_LOOK_S
        looked = time.monotonic()
        age = supervisor.beat_age()
        # if this thread was stopped itself, then probably everything was: look again
        if late or age <= BEAT_LIMIT_S:
            continue
        logging.getLogger(__name__).error("supervisor is dead: no beat for %.1f s; ending", age)
        pids = [row[Field.PID] for row in page.rows.values()]
        for pid in [parent, *pids]:
            if pid not in (0, os.getpid()):
                _kill(pid)
        os._exit(EXIT_SOFTWARE)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        # gone already
        return


def _arguments(who: ProcessId, descriptors: str) -> tuple[object, ...]:
    """What the role's function takes besides config, run_dir and page."""
    import socket

    if who.role == "api":
        return ([socket.socket(fileno=int(number)) for number in descriptors.split(",")],)
    return () if who.index is None else (who.index,)


def _enter(who: ProcessId, run_dir: Path, parent: int, descriptors: str) -> None:
    import importlib
    import logging

    from lightllm_server.logs import configure_logging
    from lightllm_server.run_directory import open_page, read_config
    from lightllm_server.status_page import Field, State

    config = read_config(run_dir)
    configure_logging(config.log, who.name)
    page = open_page(run_dir)
    row = page[who.name]
    row[Field.PID] = os.getpid()
    threading.Thread(target=_beat_forever, args=(row,), name="beat", daemon=True).start()
    watcher = threading.Thread(target=watch_parent, args=(page, parent), daemon=True)
    watcher.start()
    module, _, function = ROLES[who.role].partition(":")
    run = getattr(importlib.import_module(module), function)
    row.state = State.LOADING
    logging.getLogger(__name__).debug("entered")
    run(config, run_dir, page, *_arguments(who, descriptors))


def _run(who: ProcessId, run_dir: Path, parent: int, descriptors: str) -> int:
    """Enter the role; returns the exit code."""
    import logging

    from lightllm_server.errors import EXIT_CONFIG, EXIT_SOFTWARE, ConfigError

    logger = logging.getLogger(__name__)
    try:
        _enter(who, run_dir, parent, descriptors)
    except ConfigError as error:
        logger.error("%s", error)  # noqa: TRY400 - the message says it all
        return EXIT_CONFIG
    except Exception:
        logger.exception("%s failed", who.name)
        return EXIT_SOFTWARE
    return 0


def main() -> NoReturn:
    """Entry of a child. Ends by `os._exit`: after a broken collective torch would abort instead."""
    # a stop is the supervisor's to hand on
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="lightllm_server.processes")
    parser.add_argument("--role", choices=ROLES, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--index", type=int)
    parser.add_argument("--sockets", default="")
    options = parser.parse_args()
    _die_with_parent(options.parent)
    who = ProcessId(options.role, options.index)
    code = _run(who, options.run_dir, options.parent, options.sockets)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
