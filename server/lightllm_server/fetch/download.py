"""Files of a source into a directory: resumed where an earlier run ended, never written by two."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lightllm_server.errors import FetchError, InterruptedFetchError
from lightllm_server.fetch.ledger import Ledger
from lightllm_server.fetch.progress import Progress
from lightllm_server.fetch.source import WEIGHTS, RemoteFile, Source, needed

__all__ = ["download"]

_AT_ONCE = 8
# a hub gives files beyond some size in ranges only
_RANGE_BYTES = 4 * 2**30
_HASH_BYTES = 2**20
_ATTEMPTS = 6
_FIRST_DELAY_S = 0.5
_LOCK_PERIOD_S = 1.0
_HEAD_BYTES = 64 * 1024
_HEADER_OF = "header of "
_MAX_HEADER_BYTES = 100_000_000


def download(
    source: Source,
    directory: Path,
    origin: Mapping[str, Any],
    progress: Progress,
    *,
    headers_only: bool = False,
) -> dict[str, Any]:
    """Fetch what a server needs; at once if that was done before. The note of what was fetched.

    origin: what is asked for, as JSON; a directory is of one origin at a time. headers_only: of
    weights only their headers, in sparse files of the full size: enough for the check. Raises
    FetchError.
    """
    try:
        ledger = Ledger(directory)

        def wait() -> None:
            progress.set_state("waiting")
            time.sleep(_LOCK_PERIOD_S)

        with ledger.locked(wait):
            note = ledger.complete(origin)
            if note is None:
                progress.set_state("listing")
                transfer = _Transfer(source, directory, ledger, progress)
                note = {"origin": dict(origin), **transfer.run(headers_only=headers_only)}
                ledger.set_complete(note)
            progress.set_state("complete")
            return note
    except OSError as error:
        raise _storage_error(directory, error) from error


class _Transfer:
    """One run over the files of a source."""

    def __init__(self, source: Source, directory: Path, ledger: Ledger, progress: Progress) -> None:
        self._source = source
        self._directory = directory
        self._ledger = ledger
        self._progress = progress
        # the error that stopped the others
        self._failure: BaseException | None = None
        self._stopped = threading.Event()
        self._mutex = threading.Lock()

    def run(self, *, headers_only: bool) -> dict[str, Any]:
        files = self._needed()
        if headers_only:
            # a file that is mostly a hole is another version, lest it be taken for the whole
            files = tuple(
                replace(file, version=_HEADER_OF + file.version) if _is_weights(file) else file
                for file in files
            )
        self._ledger.begin(files)
        missing = [file for file in files if not self._ledger.is_done(file)]
        there = {file: self._part_size(file) for file in missing}
        total = sum(file.size for file in files)
        left = sum(file.size - there[file] for file in missing)
        self._progress.start(done=total - left, total=total)
        if not headers_only:
            self._check_space(left)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # the largest first, so that none is left alone at the end
            missing.sort(key=lambda file: -file.size)
            for file in missing:
                pool.submit(self._fetch, file, headers_only)
        if self._failure is not None:
            raise self._failure
        return {"commit": self._source.commit, "files": len(files), "bytes": total}

    def _needed(self) -> tuple[RemoteFile, ...]:
        listed = _tried_again(self._source.files)
        for file in listed:
            if Path(file.name).name != file.name:
                raise FetchError("DownloadFailed", f"file name {file.name!r} is not allowed")

        def whole(file: RemoteFile) -> bytes:
            return self._read(file, 0, file.size)

        files = needed(listed, whole)
        if not files:
            some = ", ".join(sorted(file.name for file in listed)[:5]) or "nothing"
            raise FetchError("NotFound", f"no model there: found {some}")
        return files

    def _check_space(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self._directory).free
        if num_bytes > free:
            raise FetchError(
                "InsufficientStorage",
                f"{self._directory} has {free / 1e6:.0f} MB free, the model needs "
                f"{num_bytes / 1e6:.0f} MB more",
            )

    def _part_size(self, file: RemoteFile) -> int:
        part = self._ledger.part(file)
        size = part.stat().st_size if part.is_file() else 0
        return size if size <= file.size else 0

    def _fetch(self, file: RemoteFile, headers_only: bool) -> None:
        try:
            if self._stopped.is_set():
                return
            if headers_only and _is_weights(file):
                self._fetch_header(file)
            else:
                self._fetch_whole(file)
            self._ledger.finish(file)
        except BaseException as error:
            # the pool's top: raised again by the thread that waits for all
            with self._mutex:
                self._failure = self._failure or error
            self._stopped.set()

    def _fetch_whole(self, file: RemoteFile) -> None:
        part, there = self._ledger.part(file), self._part_size(file)
        digest = hashlib.sha256()
        with part.open("r+b" if part.exists() else "w+b", buffering=0) as out:
            if file.sha256 is not None:
                _hash_first(out, there, digest.update)
            if os.fstat(out.fileno()).st_size > there:
                # longer than the file ever was: not ours
                out.truncate(there)
            out.seek(there)

            def take(piece: bytes) -> None:
                if self._stopped.is_set():
                    raise FetchError("DownloadFailed", "another file failed")
                _write(out, piece)
                if file.sha256 is not None:
                    digest.update(piece)
                self._progress.add(len(piece))

            self._stream(file, there, file.size, take)
            os.fsync(out.fileno())
        if file.sha256 is not None and digest.hexdigest() != file.sha256:
            part.unlink()
            raise FetchError("DownloadFailed", f"{file.name}: its SHA-256 is not the source's")

    def _fetch_header(self, file: RemoteFile) -> None:
        source = replace(file, version=file.version.removeprefix(_HEADER_OF))
        head = self._read(source, 0, min(file.size, _HEAD_BYTES))
        end = 8 + int.from_bytes(head[:8], "little")
        # a header of a wrong size is left to the check, which names it
        if len(head) < end <= min(file.size, 8 + _MAX_HEADER_BYTES):
            head += self._read(source, len(head), end)
        with self._ledger.part(file).open("wb") as out:
            out.write(head)
            out.truncate(file.size)
        self._progress.add(file.size)

    def _read(self, file: RemoteFile, begin: int, end: int) -> bytes:
        pieces: list[bytes] = []
        self._stream(file, begin, end, pieces.append)
        return b"".join(pieces)

    def _stream(
        self, file: RemoteFile, begin: int, end: int, take: Callable[[bytes], None]
    ) -> None:
        """Give `take` the bytes; a lost connection is made again from where it broke."""
        at, failures = begin, 0
        while at < end:
            before = at
            try:
                for piece in self._source.stream(file, at, min(end, at + _RANGE_BYTES)):
                    take(piece)
                    at += len(piece)
                if at == before:
                    raise InterruptedFetchError(f"{file.name}: no bytes from {at} of {end} on")
            except InterruptedFetchError:
                failures = 1 if at > before else failures + 1
                if failures == _ATTEMPTS or self._stopped.is_set():
                    raise
                time.sleep(_FIRST_DELAY_S * 2 ** (failures - 1))


def _tried_again(call: Callable[[], list[RemoteFile]]) -> list[RemoteFile]:
    for attempt in range(_ATTEMPTS - 1):
        try:
            return call()
        except InterruptedFetchError:
            time.sleep(_FIRST_DELAY_S * 2**attempt)
    return call()


def _is_weights(file: RemoteFile) -> bool:
    return fnmatchcase(file.name, WEIGHTS)


def _hash_first(file: Any, num_bytes: int, update: Callable[[bytes], None]) -> None:
    while num_bytes and (piece := file.read(min(num_bytes, _HASH_BYTES))):
        update(piece)
        num_bytes -= len(piece)


def _write(file: Any, piece: bytes) -> None:
    """All of it: an unbuffered write may take a part."""
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


def _storage_error(directory: Path, error: OSError) -> FetchError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "InsufficientStorage" if full else "DownloadFailed"
    return FetchError(reason, f"{error.filename or directory}: {error.strerror}")
