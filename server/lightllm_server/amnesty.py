"""A machine that stood still: who watches others must not take its own pause for theirs."""

from __future__ import annotations

import logging
import time

__all__ = ["Amnesty"]

logger = logging.getLogger(__name__)

# since the last look, which others follow several times a second
_LATE_S = 3.0
# until a process that stood still too has beaten and gone on
_AMNESTY_S = 10.0


class Amnesty:
    """Who could not look itself judges nobody for a while: probably nobody was scheduled."""

    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._until = 0.0

    def look(self) -> bool:
        """Whether nobody is to be judged now; call a few times per second."""
        now = time.monotonic()
        away = now - self._looked
        if away > _LATE_S:
            logger.warning("could not look for %.1f s: judging nobody for %g s", away, _AMNESTY_S)
            self._until = now + _AMNESTY_S
        self._looked = now
        return now < self._until
