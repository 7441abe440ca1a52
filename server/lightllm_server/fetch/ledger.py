"""What of a directory is fetched already, kept beside the files in DIR/.fetch.

`files.json` has the version of every finished file, `parts/` the unfinished ones, `complete.json`
is written when all is there, and `lock` is held by the one process that writes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from lightllm_server.fetch.source import RemoteFile

__all__ = ["Ledger", "fetched_commit"]

_FOLDER = ".fetch"
_COMPLETE = "complete.json"


def fetched_commit(directory: Path) -> str:
    """The hub's commit that the directory was fetched from, "" if there is none."""
    found = _load(directory / _FOLDER / _COMPLETE)
    return str(found.get("commit", ""))


class Ledger:
    """Of one directory, which is made if need be."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._folder = directory / _FOLDER
        self._parts = self._folder / "parts"
        self._mutex = Lock()
        self._parts.mkdir(parents=True, exist_ok=True)
        self._versions = _load(self._folder / "files.json")

    @contextmanager
    def locked(self, wait: Callable[[], None]) -> Iterator[None]:
        """Be the only writer; `wait` is called between tries. Ends with the process, on a network
        file system too."""
        with (self._folder / "lock").open("a") as file:
            while True:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except (BlockingIOError, PermissionError):
                    wait()
            self._versions = _load(self._folder / "files.json")
            yield

    def complete(self, origin: Mapping[str, Any]) -> dict[str, Any] | None:
        """The note of the finished download of `origin`, None while it is not finished."""
        note = _load(self._folder / _COMPLETE)
        return note if note.get("origin") == origin else None

    def set_complete(self, note: Mapping[str, Any]) -> None:
        _store(self._folder / _COMPLETE, note)

    def begin(self, files: tuple[RemoteFile, ...]) -> None:
        """Nothing is complete any more; forget and remove what is not of these versions."""
        (self._folder / _COMPLETE).unlink(missing_ok=True)
        wanted = {file.name: file.version for file in files}
        for name in [n for n, version in self._versions.items() if wanted.get(n) != version]:
            (self._directory / name).unlink(missing_ok=True)
            del self._versions[name]
        _store(self._folder / "files.json", self._versions)
        parts = {self.part(file).name for file in files}
        for path in self._parts.iterdir():
            if path.name not in parts:
                path.unlink()

    def part(self, file: RemoteFile) -> Path:
        """Where the file is while it is unfinished."""
        key = hashlib.sha256(f"{file.name}\n{file.version}".encode()).hexdigest()[:16]
        return self._parts / f"{key}.part"

    def is_done(self, file: RemoteFile) -> bool:
        path = self._directory / file.name
        same = self._versions.get(file.name) == file.version
        return same and path.is_file() and path.stat().st_size == file.size

    def finish(self, file: RemoteFile) -> None:
        """The part is whole: move it to its place."""
        os.replace(self.part(file), self._directory / file.name)
        with self._mutex:
            self._versions[file.name] = file.version
            _store(self._folder / "files.json", self._versions)


def _load(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _store(path: Path, value: Mapping[str, Any]) -> None:
    """Whole or not at all, also after a power cut."""
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
