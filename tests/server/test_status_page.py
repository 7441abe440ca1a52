"""The status page: rows are shared between processes, and dead, hung and busy are told apart."""

from __future__ import annotations

import errno
import subprocess
import sys
import time

import pytest

from lightllm_server import status_page
from lightllm_server.status_page import Field, ProgressWatch, State, StatusPage


@pytest.fixture
def page(tmp_path):
    return StatusPage.create(tmp_path / "status", ["api", "router", "rank-1"])


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves, in seconds."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "monotonic_ns", lambda: int(clock[0] * 1e9))
    return clock


def test_what_another_process_writes_is_seen(page, tmp_path):
    code = (
        "import sys; from pathlib import Path; from lightllm_server.status_page import *;"
        "row = StatusPage(Path(sys.argv[1]))['router']; row.state = State.READY; row.beat();"
        "row[Field.WORK] = -5; row.add(Field.STEPS, 2**40); row.add(Field.STEPS); row.tick()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "status")], check=True)
    row = page["router"]
    assert row.state is State.READY
    assert row[Field.WORK] == -5
    assert row[Field.STEPS] == 2**40 + 1
    assert row[Field.TICK] == 1
    assert 0 < row.beat_age() < 5
    for other in ("api", "rank-1"):
        assert all(page[other][field] == 0 for field in Field)


def test_columns_are_distinct_and_within_the_row(page):
    assert len({int(field) for field in Field}) == len(Field)
    for field in Field:
        page["router"][field] = 1000 + field
    assert [page["router"][field] for field in Field] == [1000 + field for field in Field]
    assert all(page["rank-1"][field] == 0 for field in Field)


def test_a_page_exists_once_and_is_private(page, tmp_path):
    assert (tmp_path / "status").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        StatusPage.create(tmp_path / "status", ["api"])


def test_a_full_disk_is_an_error_at_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(status_page.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        StatusPage.create(tmp_path / "other", ["api"])


def test_too_many_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="4096"):
        StatusPage.create(tmp_path / "other", [f"rank-{rank}" for rank in range(1000)])


@pytest.mark.parametrize("content", [b"", b"{" * 5000])
def test_what_is_no_page_is_refused(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError):
        StatusPage(tmp_path / "other")


def ready(page) -> status_page.StatusRow:
    row = page["router"]
    row.state = State.READY
    row.beat()
    return row


def test_no_beat_for_15_seconds_is_dead(page, now):
    row = ready(page)
    watch = ProgressWatch(row)
    now[0] += 14.9
    assert watch.problem() is None
    now[0] += 0.2
    assert "router is dead: no beat for 15.1 s" in (watch.problem() or "")


def test_a_process_that_never_beat_is_not_dead_yet(page, now):
    watch = ProgressWatch(page["router"])
    now[0] += 100
    assert watch.problem() is None


def test_no_tick_for_10_seconds_with_work_is_a_hang(page, now):
    row = ready(page)
    row[Field.WORK] = 3
    watch = ProgressWatch(row)
    problems = []
    for _ in range(24):
        now[0] += 0.5
        row.beat()
        problems.append(watch.problem())
    assert problems[19] is None
    assert "router hangs: no progress for 10.5 s" in (problems[-3] or "")


@pytest.mark.parametrize("reason", ["idle", "ticking", "loading"])
def test_idle_busy_and_loading_are_no_hang(page, now, reason):
    row = ready(page)
    watch = ProgressWatch(row)
    row[Field.WORK] = 0 if reason == "idle" else 1
    if reason == "loading":
        row.state = State.LOADING
    for second in range(600):
        now[0] += 0.5
        row.beat()
        if reason == "ticking" and second % 19 == 0:
            row.tick()
        assert watch.problem() is None


def test_work_after_a_long_idle_time_starts_the_clock_anew(page, now):
    row = ready(page)
    watch = ProgressWatch(row)
    for _ in range(100):
        now[0] += 1
        row.beat()
        assert watch.problem() is None
    row[Field.WORK] = 1
    for _ in range(9):
        now[0] += 1
        row.beat()
        assert watch.problem() is None
    now[0] += 2
    row.beat()
    assert watch.problem()
