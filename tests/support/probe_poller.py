"""Asks a probe every 50 ms from a process of its own, so that the test's load does not delay it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

__all__ = ["ProbePoller"]

PERIOD_S = 0.05


class ProbePoller:
    """A context manager; afterwards `answers` holds (status, seconds) of each probe."""

    def __init__(self, url: str, path: str = "/livez") -> None:
        self.answers: list[tuple[int, float]] = []
        self._command = [sys.executable, "-S", __file__, url + path]

    def __enter__(self) -> ProbePoller:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "polling\n"
        return self

    def __exit__(self, *_: object) -> None:
        output, _ = self._process.communicate("stop\n", timeout=60)
        self.answers = [tuple(answer) for answer in json.loads(output)]

    def check(self, limit_s: float) -> None:
        """All answered 200, 99 % of them within the limit."""
        assert len(self.answers) >= 10
        assert {status for status, _ in self.answers} == {200}
        seconds = sorted(taken for _, taken in self.answers)
        assert seconds[int(len(seconds) * 0.99) - 1] < limit_s, seconds[-5:]


def _ask(url: str) -> tuple[int, float]:
    began = time.monotonic()
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, time.monotonic() - began
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, time.monotonic() - began


def main() -> None:
    import select

    url = sys.argv[1]
    answers = [_ask(url)]
    print("polling", flush=True)
    while not select.select([sys.stdin], [], [], PERIOD_S)[0]:
        answers.append(_ask(url))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
