"""The parent of a stage: cases run in a worker process, which is ended and started anew behind a
case that hangs, ends the process or leaves the GPU's context broken. So no case costs another one
its turn, and each result is written as it comes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cases import Results

__all__ = ["NO_LIMITS", "Limits", "Stage"]

_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: of one case; of the stage until no case begins any more, and until none goes on."""

    case: float = 240.0
    begin: float = 420.0
    end: float = 480.0


NO_LIMITS = Limits(math.inf, math.inf, math.inf)


@dataclass(slots=True)
class Stage:
    """command: starts a worker, with `--first INDEX --failed INDEX,… --report FD` behind it."""

    command: list[str]
    results: Results
    limits: Limits
    _began: float = field(default_factory=time.monotonic)
    _names: list[str] = field(default_factory=list)
    _next: int = 0

    def run(self) -> bool:
        """Whether every case passed that time allowed."""
        while not self._names or self._next < len(self._names):
            if self._seconds > self.limits.begin:
                self._skip_rest()
            elif not self._run_worker():
                break
        return bool(self._names) and self.results.all_passed

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _skip_rest(self) -> None:
        for name in self._names[self._next :]:
            self.results.add(name, "skipped", 0.0, {"why": "the stage's time is over"})
        self._next = len(self._names)

    def _run_worker(self) -> bool:
        """Follow one worker to its end; False if it did not even say what its cases are."""
        worker, why, first = _Worker(self._worker_command()), "", self._next
        case_began: float | None = None
        try:
            # until the first message: the worker imports torch
            for message in worker.messages(self._seconds_left):
                if "cases" in message:
                    self._names, self.results.machine = message["cases"], message["machine"]
                elif "figures" in message:
                    self.results.add(self._names[self._next], **message)
                    self._next, case_began = self._next + 1, None
                elif self._seconds > self.limits.begin:
                    break
                else:
                    case_began = self._seconds
        except TimeoutError:
            why = "was ended after"
        finally:
            status = worker.end()
        over = self._seconds > self.limits.begin
        if self._names and (case_began is not None or (self._next == first and not over)):
            seconds = self._seconds - (case_began or self._seconds)
            error = f"{why or f'ended its process, status {status}, after'} {seconds:.0f} s"
            self.results.add(self._names[self._next], "FAILED", seconds, {"error": error})
            self._next += 1
        return bool(self._names)

    def _worker_command(self) -> list[str]:
        failed = [
            str(number)
            for number, case in enumerate(self.results.cases)
            if case["outcome"] == "FAILED"
        ]
        return [*self.command, "--first", str(self._next), "--failed", ",".join(failed)]

    def _seconds_left(self) -> float:
        """For the next message of a worker, whatever it is."""
        return min(self.limits.case, self.limits.end - self._seconds)


class _Worker:
    """A process whose messages are lines of JSON on a pipe: {cases, machine} once, and for each
    case {} as it begins and its outcome, seconds and figures as it ends.
    """

    def __init__(self, command: list[str]) -> None:
        self._reader, writer = os.pipe()
        # its own group, so that a server which a case started ends with it
        self._process = subprocess.Popen(
            [*command, "--report", str(writer)],
            pass_fds=[writer],
            process_group=0,
        )
        os.close(writer)

    def messages(self, seconds_left: Callable[[], float]) -> Iterator[dict[str, Any]]:
        """Until the process ends; TimeoutError if the next takes longer than `seconds_left()`."""
        text = b""
        while True:
            *lines, text = text.split(b"\n")
            for line in lines:
                yield json.loads(line)
            left = seconds_left()
            timeout = None if math.isinf(left) else max(0.0, left)
            if not select.select([self._reader], [], [], timeout)[0]:
                raise TimeoutError
            data = os.read(self._reader, 1 << 16)
            if not data:
                return
            text += data

    def end(self) -> int:
        """Its exit status, negative for a signal; whatever still runs of its group is ended."""
        os.close(self._reader)
        # one that ended by itself is soon gone; of another faulthandler shows where it is
        for kind in (None, signal.SIGABRT, signal.SIGKILL):
            if kind is not None:
                self._process.send_signal(kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()
