"""Runs other programs, and says what went wrong when they fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from errors import ClusterError, WaitedInVainError
from layout import MARK


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> str:
    """The program's output; raises ClusterError with the end of what it said."""
    shown = " ".join(map(str, command))
    try:
        done = subprocess.run(
            list(map(str, command)),
            input=stdin,
            env={**(os.environ if env is None else env), MARK: "tool"},
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]}: no such program") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{shown}: not done after {timeout} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise ClusterError(f"{shown}: exit code {done.returncode}\n{said}")
    return done.stdout


def run_over_network(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """`run`, up to three times: a download may fail for a moment. Raises the last ClusterError."""
    for pause in (5, 20):
        try:
            return run(command, env=env, cwd=cwd)
        except ClusterError as error:
            say(f"{error}\nonce more in {pause} s")
            time.sleep(pause)
    return run(command, env=env, cwd=cwd)


def succeeds(command: Sequence[str | Path]) -> bool:
    """Whether the program ends with 0; what it says is dropped."""
    try:
        return not subprocess.run(
            list(map(str, command)), capture_output=True, check=False
        ).returncode
    except FileNotFoundError:
        return False


def answers(url: str) -> bool:
    """Whether a GET, by no proxy, is answered with 200 within 2 s."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Poll; raises WaitedInVainError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise WaitedInVainError(f"{what}: not so after {timeout:.0f} s")
        time.sleep(0.2)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    print(f"  {what} … ", end="", flush=True)
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.monotonic() - began:.1f} s", flush=True)


def say(line: str) -> None:
    print(line, file=sys.stdout, flush=True)
