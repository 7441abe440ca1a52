"""A machine that stood still: who watches others must not take its own pause for theirs."""

from __future__ import annotations

import logging
import time

__all__ = ["Amnesty"]

logger = logging.getLogger(__name__)

_LATE_S = 3.0
_AMNESTY_S = 10.0


class Amnesty:
    """Who could not look itself judges nobody for a while: probably nobody was scheduled."""

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._until = 0.0

    def look(self) -> bool:
        """Whether nobody is to be judged now; call a few times per second."""
        now = time.monotonic()
        if now - self._looked > _LATE_S:
            late = now - self._looked
            logger.warning("looked %.1f s late: judging nobody for %g s", late, _AMNESTY_S)
            self._until = now + _AMNESTY_S
        self._looked = now
        return now < self._until
