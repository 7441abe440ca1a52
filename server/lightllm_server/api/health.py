"""Liveness and readiness, read from the status page: no busy process is asked."""

from __future__ import annotations

from lightllm_server.amnesty import Amnesty
from lightllm_server.status_page import BEAT_LIMIT_S, ProgressWatch, State, StatusPage

__all__ = ["Health"]


class Health:
    """What the whole process tree is able to do now."""

    def __init__(self, page: StatusPage) -> None:
        self._page = page
        self._watches = [ProgressWatch(row) for row in page.rows.values()]
        self._amnesty = Amnesty()
        self._problem: str | None = None

    def check_progress(self) -> None:
        """Call a few times per second: a row must be seen unchanged for a while to be hung."""
        # all are asked, also in an amnesty: asking is how progress is noticed
        problems = [watch.problem() for watch in self._watches]
        found = next((problem for problem in problems if problem), None)
        self._problem = None if self._amnesty.look() else found

    def not_live(self) -> str | None:
        """Why the tree is beyond help, or None."""
        for row in self._page.rows.values():
            if row.state is State.FAILED:
                return f"{row.name} failed"
        return self._problem

    def not_ready(self) -> str | None:
        """Why a new request should not be sent here, or None."""
        problem = self.not_live()
        if problem is not None:
            return problem
        for row in self._page.rows.values():
            if row.beat_age() > BEAT_LIMIT_S:
                return f"{row.name} is dead"
            if row.state is State.DRAINING:
                return "draining"
            # the supervisor serves nothing: it is well while it beats
            if row.state is not State.READY and row.name != "supervisor":
                return f"{row.name} is {row.state.name.lower()}"
        return None
