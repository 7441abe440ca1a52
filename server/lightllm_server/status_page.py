"""The status page: one mmap file in the run directory, a row of 64 int64 per process.

Every process writes its own row and may read all; a write is one aligned 8-byte store, so nobody
waits
for anybody. Probes, metrics, admission and the supervisor read it: nothing asks a busy process.

Rows hold a beat (CLOCK_MONOTONIC ns, from a small thread), a progress tick, the amount of work
queued, and counters. A process is dead when its beat is older than `BEAT_LIMIT_S`, and hung when
its tick has not changed for `TICK_LIMIT_S` while it had work.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from enum import IntEnum
from pathlib import Path

__all__ = [
    "BEAT_LIMIT_S",
    "TICK_LIMIT_S",
    "Field",
    "ProgressWatch",
    "State",
    "StatusPage",
    "StatusRow",
]

BEAT_LIMIT_S = 15.0
TICK_LIMIT_S = 10.0
_HEADER_BYTES = 4096
_ROW_FIELDS = 64


class State(IntEnum):
    STARTING = 0
    LOADING = 1
    READY = 2
    DRAINING = 3
    FAILED = 4


class Field(IntEnum):
    """Columns of a row. Counters only grow while the process lives; the rest are gauges."""

    PID = 0
    STATE = 1
    BEAT_NS = 2
    TICK = 3
    WORK = 4  # requests or jobs that this process should be making progress on
    LOADED_PERMILLE = 5
    REJECTED_FRAMES = 6

    # api: counted when a request is accepted (sent to the router), and what came of it
    ACCEPTED = 10
    ACCEPTED_TOKENS = 11
    ENDED = 12
    REJECTED_429 = 13
    IN_FLIGHT_HTTP = 14

    # router: gauges
    RUNNING = 20
    RUNNING_ROWS = 21
    PREEMPTED_WAITING = 22
    SLOTS_TOTAL = 23
    SLOTS_USED = 24
    SLOTS_CACHED = 25
    MAX_RUNNING = 26
    SLOTS_PEAK = 27
    # router: counters. accepted - STARTED - ENDED_UNSTARTED + PREEMPTED_WAITING = waiting requests
    STARTED = 30
    STARTED_TOKENS = 31
    ENDED_UNSTARTED = 32
    ENDED_UNSTARTED_TOKENS = 33
    PREEMPTIONS = 34
    RECOMPUTED_TOKENS = 35
    PREFIX_QUERY_TOKENS = 36
    PREFIX_HIT_TOKENS = 37
    PROMPT_TOKENS = 38
    GENERATED_TOKENS = 39
    STEPS = 40
    STEP_TIME_NS = 41
    PLAN_TIME_NS = 42
    UNKNOWN_ABORTS = 43


class StatusRow:
    """One process's row; indexing reads and writes a column."""

    __slots__ = ("_cells", "name")

    def __init__(self, name: str, cells: memoryview) -> None:
        self.name = name
        self._cells = cells

    def __getitem__(self, field: Field) -> int:
        return int(self._cells[field])

    def __setitem__(self, field: Field, value: int) -> None:
        self._cells[field] = value

    def add(self, field: Field, amount: int = 1) -> None:
        """Only the row's own process may call this: read, add and write are three steps."""
        self._cells[field] += amount

    def tick(self) -> None:
        """Say that real progress was made."""
        self._cells[Field.TICK] += 1

    def beat(self) -> None:
        self._cells[Field.BEAT_NS] = time.monotonic_ns()

    @property
    def state(self) -> State:
        return State(self._cells[Field.STATE])

    @state.setter
    def state(self, state: State) -> None:
        self._cells[Field.STATE] = state

    def beat_age(self) -> float:
        """Seconds since the last beat; 0 before the first: the process has not started yet."""
        last = self._cells[Field.BEAT_NS]
        return (time.monotonic_ns() - last) / 1e9 if last else 0.0


class StatusPage:
    """All rows by process name: supervisor, api, router, detok, rank-1 …, tokenize-0 …."""

    def __init__(self, path: Path) -> None:
        """Open an existing page; raises OSError or ValueError if it is not one."""
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        names = json.loads(self._map[:_HEADER_BYTES].rstrip(b"\0"))
        cells = memoryview(self._map)[_HEADER_BYTES:].cast("q")
        self.rows = {
            name: StatusRow(name, cells[i * _ROW_FIELDS : (i + 1) * _ROW_FIELDS])
            for i, name in enumerate(names)
        }

    @classmethod
    def create(cls, path: Path, names: list[str]) -> StatusPage:
        """Raises OSError (ENOSPC) at once if the disk cannot hold it, rather than SIGBUS later."""
        header = json.dumps(names).encode()
        if len(header) > _HEADER_BYTES:
            raise ValueError(f"status page header is {len(header)} bytes, at most {_HEADER_BYTES}")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _HEADER_BYTES + len(names) * _ROW_FIELDS * 8)
            os.pwrite(descriptor, header, 0)
        finally:
            os.close(descriptor)
        return cls(path)

    def __getitem__(self, name: str) -> StatusRow:
        return self.rows[name]


class ProgressWatch:
    """Tells dead and hung processes from busy ones; call `problem` a few times per second."""

    def __init__(self, row: StatusRow) -> None:
        self._row = row
        self._tick = -1
        self._changed = time.monotonic()

    def problem(self) -> str | None:
        """What is wrong with the process, or None."""
        now = time.monotonic()
        age = self._row.beat_age()
        if age > BEAT_LIMIT_S:
            return f"{self._row.name} is dead: no beat for {age:.1f} s"
        tick = self._row[Field.TICK]
        idle = self._row[Field.WORK] == 0
        if tick != self._tick or idle or self._row.state is not State.READY:
            self._tick, self._changed = tick, now
            return None
        if now - self._changed > TICK_LIMIT_S:
            stalled = now - self._changed
            return f"{self._row.name} hangs: no progress for {stalled:.1f} s with work queued"
        return None
