"""The operator's log: a line per change of state, as text or JSON, on stderr."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal

__all__ = ["LogFormat", "configure"]

LogFormat = Literal["text", "json"]

# they tell of every event of every object, and of every probe
_TALKATIVE = ("kopf", "aiohttp.access")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def _is_news(record: logging.LogRecord) -> bool:
    """kopf's watches tell of each attempt of an outage; `watch_check` tells of it once."""
    return not (record.name.startswith("kopf") and str(record.msg).startswith("Request attempt"))


def configure(log_format: LogFormat) -> None:
    """To be called once per process."""
    handler = logging.StreamHandler()
    handler.addFilter(_is_news)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_Json() if log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
