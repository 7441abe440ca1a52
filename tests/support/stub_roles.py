"""A server whose roles are stubs: the real supervisor and process entry, nothing to load.

Run as a script with the options of the server; each child runs this script too. What a role does
beyond being ready is told by environment variables `STUB_<ROLE>`, of the form `action` or
`action@seconds`: abort, exit0, raise, config, segfault, hang, words (the api: sees a failure before
the supervisor does, and takes half a second to tell its clients).
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import threading
import time

from lightllm_server import cli, processes, supervisor
from lightllm_server.errors import ConfigError
from lightllm_server.status_page import Field, State

__all__ = ["COMMAND", "main"]

COMMAND = (sys.executable, __file__)


def _act(action: str, row, supervisor_row) -> None:
    match action:
        case "abort":
            os.abort()
        case "exit0":
            os._exit(0)
        case "raise":
            raise RuntimeError("boom")
        case "config":
            raise ConfigError("model.safetensors: truncated")
        case "segfault":
            ctypes.string_at(0)
        case "hang":
            # the beat goes on, progress does not
            row[Field.WORK] = 1
        case "words":
            row.state = State.FAILED
            while supervisor_row.state is not State.FAILED:
                time.sleep(0.01)
            time.sleep(0.5)
            print("all clients are told", file=sys.stderr, flush=True)
            os._exit(70)
        case "":
            pass
        case _:
            raise AssertionError(action)


def _role(name: str, row, supervisor_row) -> None:
    action, _, delay = os.environ.get(f"STUB_{name.upper()}", "").partition("@")
    row.state = State.READY
    time.sleep(float(delay or 0))
    _act(action, row, supervisor_row)


def _forever(config, run_dir, page, *rest) -> None:
    _role(*_self(page), page["supervisor"])
    while True:
        time.sleep(60)


def _self(page):
    name = next(name for name, row in page.rows.items() if row[Field.PID] == os.getpid())
    return name.partition("-")[0], page[name]


def _api(config, run_dir, page, sockets) -> None:
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    others = [row for name, row in page.rows.items() if name != "api"]
    while not all(row.state is State.READY for row in others):
        time.sleep(0.01)
    _role("api", page["api"], page["supervisor"])
    while not stopped.wait(0.05):
        pass
    page["api"].state = State.DRAINING
    time.sleep(float(os.environ.get("STUB_DRAIN", "0")))


def main() -> int:
    if "--role" in sys.argv:
        for role in processes.ROLES:
            processes.ROLES[role] = "__main__:_api" if role == "api" else "__main__:_forever"
        processes.main()
    supervisor.serve = functools.partial(supervisor.serve, entry=COMMAND)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
