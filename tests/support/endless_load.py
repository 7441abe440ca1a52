"""A server whose router loads its model for ever; all else is real.

Run as a script with the options of the server; each child runs this script too.
"""

from __future__ import annotations

import functools
import sys
import time

from lightllm_server import cli, processes, supervisor

__all__ = ["COMMAND", "main"]

COMMAND = (sys.executable, __file__)


def _router(*_: object) -> None:
    while True:
        time.sleep(60)


def main() -> int:
    if "--role" in sys.argv:
        processes.ROLES["router"] = "__main__:_router"
        processes.main()
    supervisor.serve = functools.partial(supervisor.serve, entry=COMMAND)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
