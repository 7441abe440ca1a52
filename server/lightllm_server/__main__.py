"""`python -m lightllm_server`, the same as the command `lightllm-server`."""

from __future__ import annotations

import sys

from lightllm_server import cli

__all__ = ["main"]


def main() -> None:
    """Entry of the console script."""
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
