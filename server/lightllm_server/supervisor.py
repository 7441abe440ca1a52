"""The supervisor: starts all processes, watches them, and ends all of them if one ends or hangs.

It holds no model, imports no torch, may be PID 1 of a container (reaps orphans), and leaves nothing
behind. SIGTERM and SIGINT go to the api alone, which drains and exits 0; then the rest is ended.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lightllm_server import processes
from lightllm_server.amnesty import Amnesty
from lightllm_server.child_environment import child_environment
from lightllm_server.config import ServerConfig
from lightllm_server.errors import EXIT_CONFIG, EXIT_SOFTWARE
from lightllm_server.listeners import base_url, bind_listeners
from lightllm_server.load_progress import LoadProgress
from lightllm_server.logs import configure_logging
from lightllm_server.preflight import preflight
from lightllm_server.processes import ProcessId
from lightllm_server.run_directory import RunDirectory
from lightllm_server.status_page import Field, ProgressWatch, State

__all__ = ["Supervisor", "serve"]

logger = logging.getLogger(__name__)

_POLL_S = 0.2
# until a process has imported what it needs; a cold disk may take long over torch
_START_LIMIT_S = 120.0
# the api tells its clients what happened before it is ended too
_LAST_WORDS_S = 1.0
_DRAIN_MARGIN_S = 10.0
_REAP_LIMIT_S = 3.0


class _Signals:
    """Notes signals and wakes the loop; installed before anything is started."""

    def __init__(self) -> None:
        self.stops = 0
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        # not inherited as ignored, or nothing could be waited for
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _stop(self, *_: object) -> None:
        self.stops += 1

    def wait(self, seconds: float) -> None:
        """Until a signal comes (a child's end is one), or the time is over."""
        readable, _, _ = select.select([self._reader], [], [], seconds)
        if readable:
            self._reader.recv(4096)


class _Child:
    """One started process; `returncode` is None while it lives, negative for a signal."""

    def __init__(self, who: ProcessId, popen: subprocess.Popen[bytes]) -> None:
        self.who = who
        self.pid = popen.pid
        self._popen = popen

    @property
    def returncode(self) -> int | None:
        return self._popen.returncode

    def reaped(self, status: int) -> None:
        # Popen must not wait for a process that waitpid(-1) has taken
        self._popen.returncode = os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        # not reaped, so the pid is still this child's
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> str:
        """How it ended, in words."""
        code = self.returncode
        assert code is not None, f"{self.who.name} still runs"
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"


class Supervisor:
    """The process tree of one server, from the first spawn to the last end."""

    def __init__(
        self,
        config: ServerConfig,
        listeners: Sequence[socket.socket],
        run: RunDirectory,
        signals: _Signals,
        *,
        entry: Sequence[str] = processes.ENTRY,
    ) -> None:
        """Starts all processes; takes the listeners over. Raises OSError if it cannot fork."""
        self._config = config
        self._run = run
        self._signals = signals
        self._url = base_url(listeners[0])
        self._row = run.page["supervisor"]
        self._row[Field.PID] = os.getpid()
        self._row.beat()
        ids = processes.process_ids(config)
        self._children = {who.name: self._spawn(who, listeners, entry) for who in ids}
        # the api's alone now: when it dies, connections are refused and not left waiting
        for listener in listeners:
            listener.close()
        self._watches = {who.name: ProgressWatch(self._run.page[who.name]) for who in ids}
        self._progress = LoadProgress(self._run.page)
        self._began = time.monotonic()
        self._amnesty = Amnesty()
        self._drain_until: float | None = None

    def _spawn(
        self, who: ProcessId, listeners: Sequence[socket.socket], entry: Sequence[str]
    ) -> _Child:
        environment = child_environment(who.role, self._config.engine.tp)
        sockets = listeners if who.role == "api" else ()
        popen = processes.spawn(
            who, self._run.path, sockets=sockets, environment=environment, entry=entry
        )
        return _Child(who, popen)

    def run(self) -> int:
        """Watch until the end; returns the server's exit code."""
        logger.info("starting %d processes in %s", len(self._children), self._run.path)
        self._row.state = State.READY
        try:
            return self._watch()
        finally:
            self._end_all()

    def _watch(self) -> int:
        while True:
            self._row.beat()
            self._reap()
            # before a stop is looked at: who has just become ready may have clients already
            if not self._progress.ready:
                self._report_loading()
            if self._signals.stops and self._drain_until is None:
                if not self._progress.ready:
                    logger.info("stopped before it was ready")
                    return 0
                self._drain()
            code = self._judge()
            if code is not None:
                return code
            self._signals.wait(_POLL_S)

    def _report_loading(self) -> None:
        self._progress.update()
        if self._progress.ready:
            logger.info("ready in %.1f s: %s", self._progress.seconds, self._url)

    def _reap(self) -> None:
        """Take the exit status of every ended process, of orphans too if we are PID 1."""
        by_pid = {child.pid: child for child in self._children.values()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in by_pid:
                by_pid[pid].reaped(status)

    def _drain(self) -> None:
        """Hand the first stop on to the api; later ones change nothing."""
        limit = self._config.http.drain_time
        logger.info("stopping: draining for up to %g s", limit)
        self._row.state = State.DRAINING
        self._drain_until = time.monotonic() + limit + _DRAIN_MARGIN_S
        api = self._children["api"]
        if api.returncode is None:
            os.kill(api.pid, signal.SIGTERM)

    def _judge(self) -> int | None:
        """The exit code if the server is over, else None."""
        ended = [child for child in self._children.values() if child.returncode is not None]
        if ended:
            return self._ended(ended)
        problem = self._problem()
        if problem is not None:
            return self._fail(problem)
        return None

    def _ended(self, ended: list[_Child]) -> int:
        # one failure may already have pulled others down: a refusal to start tells more
        ended.sort(key=lambda child: child.returncode != EXIT_CONFIG)
        first = ended[0]
        if first.returncode == EXIT_CONFIG:
            # it has said why
            return EXIT_CONFIG
        if self._drain_until is not None and first.who.role == "api" and first.returncode == 0:
            logger.info("stopped: all requests are finished")
            return 0
        return self._fail(f"{first.who.name} {first.end()}")

    def _problem(self) -> str | None:
        now, amnesty = time.monotonic(), self._amnesty.look()
        if self._drain_until is not None and now > self._drain_until:
            return "api did not finish within the drain time"
        # all are asked, also in an amnesty: asking is how progress is noticed
        problems = [self._problem_of(name, now) for name in self._children]
        if amnesty:
            return None
        return next((problem for problem in problems if problem), None)

    def _problem_of(self, name: str, now: float) -> str | None:
        row = self._run.page[name]
        if row.state is not State.STARTING:
            return self._watches[name].problem()
        # importing may keep the beat's thread waiting for long
        silent = row.beat_age() if row[Field.BEAT_NS] else now - self._began
        if silent > _START_LIMIT_S:
            return f"{name} does not start: no beat for {silent:.1f} s"
        return None

    def _fail(self, reason: str) -> int:
        logger.error("%s; ending the server", reason)
        # readiness is over before the first process is ended
        self._row.state = State.FAILED
        api = self._children["api"]
        for child in self._children.values():
            if child is not api:
                child.kill()
        row = self._run.page["api"]
        # failed: it saw the end before us, or since the line above, and is speaking already
        if row.state in (State.READY, State.DRAINING, State.FAILED):
            if row.beat_age() >= _LAST_WORDS_S:
                # where everything stood still it beats as soon as all goes on
                self._wait_for(_POLL_S, [api])
            if row.beat_age() < _LAST_WORDS_S:
                self._wait_for(_LAST_WORDS_S, [api])
        return EXIT_SOFTWARE

    def _end_all(self) -> None:
        children = list(self._children.values())
        for child in children:
            child.kill()
        if not self._wait_for(_REAP_LIMIT_S, children):
            logger.error("a process does not die, stuck in the kernel")

    def _wait_for(self, seconds: float, children: list[_Child]) -> bool:
        """Whether all of them have ended by then; a time in which this process was not scheduled
        does not count."""
        left = seconds
        while True:
            self._row.beat()
            self._reap()
            if all(child.returncode is not None for child in children):
                return True
            if left <= 0:
                return False
            began = time.monotonic()
            self._signals.wait(min(left, _POLL_S))
            left -= min(time.monotonic() - began, _POLL_S)


def _prepare_tokenizer(config: ServerConfig, run: RunDirectory) -> None:
    """Convert an older tokenizer's files, once for api, detok and workers; raises ModelError."""
    model_dir = Path(config.engine.model_dir)
    if (model_dir / "tokenizer.json").is_file():
        return
    from lightllm_server.tokenizer import prepare_tokenizer

    logger.info("converting the tokenizer of %s", model_dir)
    prepare_tokenizer(model_dir, run.path)


def serve(config: ServerConfig, *, entry: Sequence[str] = processes.ENTRY) -> int:
    """Run the server until it is stopped; returns its exit code.

    Raises ConfigError before any process is started if model, port or directory cannot be used.
    """
    configure_logging(config.log, "supervisor")
    signals = _Signals()
    preflight(config)
    with ExitStack() as cleanup:
        listeners = bind_listeners(config.http)
        for listener in listeners:
            cleanup.callback(listener.close)
        rows = ["supervisor", *(who.name for who in processes.process_ids(config))]
        run = RunDirectory(config, rows)
        cleanup.callback(run.close)
        _prepare_tokenizer(config, run)
        return Supervisor(config, listeners, run, signals, entry=entry).run()
