"""Logging, configured once per process: one readable line or one JSON object per event on stderr.

Never logged: prompts, tokens, keys. Per-step data are metrics.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from lightllm_server.config import LogConfig

__all__ = ["configure_logging"]


class _TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process}: %(message)s", "%H:%M:%S")


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        event = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


def configure_logging(config: LogConfig, process: str) -> None:
    """Send everything from `config.log_level` up to stderr, with the process's name in it."""
    formatter = _JsonFormatter(process) if config.log_format == "json" else _TextFormatter(process)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level.upper())
    for name in ("uvicorn.access", "asyncio", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
