"""What the log says while the processes start: one line per change of state, sparse percentages."""

from __future__ import annotations

import logging
import time

from lightllm_server.status_page import Field, State, StatusPage, StatusRow

__all__ = ["LoadProgress"]

logger = logging.getLogger(__name__)

_STEP_PERMILLE = 100
_LINE_INTERVAL_S = 1.0


class LoadProgress:
    """Call `update` a few times per second until `ready`."""

    def __init__(self, page: StatusPage) -> None:
        self._rows = [row for name, row in page.rows.items() if name != "supervisor"]
        self._states = {row.name: State.STARTING for row in self._rows}
        self._logged = {row.name: (0, 0.0) for row in self._rows}
        self._began = time.monotonic()

    @property
    def ready(self) -> bool:
        return self._states["api"] is State.READY

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def update(self) -> None:
        for row in self._rows:
            state = row.state
            if state is State.LOADING:
                self._percentage(row)
            if state is not self._states[row.name]:
                self._states[row.name] = state
                logger.info("%s: %s (%.1f s)", row.name, state.name.lower(), self.seconds)

    def _percentage(self, row: StatusRow) -> None:
        permille = row[Field.LOADED_PERMILLE]
        last, when = self._logged[row.name]
        now = time.monotonic()
        if permille - last < _STEP_PERMILLE or now - when < _LINE_INTERVAL_S:
            return
        self._logged[row.name] = (permille, now)
        logger.info("%s: loading weights %d %%", row.name, permille // 10)
