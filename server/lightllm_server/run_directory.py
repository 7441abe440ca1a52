"""The private directory of one running server: sockets, status page, configuration, lock.

Mode 0700 under the temporary directory, removed at the end. What a killed server left behind is
removed by the next start: its lock is free then.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from lightllm_server.config import ServerConfig
from lightllm_server.errors import ConfigError
from lightllm_server.status_page import StatusPage

__all__ = ["RunDirectory", "check_path_length", "open_page", "read_config"]

logger = logging.getLogger(__name__)

_PREFIX = "lightllm-"
_LOCK = "lock"
_CONFIG = "config.json"
_PAGE = "status"
# sockaddr_un holds 108 bytes with the closing NUL; the names in `channels.py` have at most 40
_MAX_SOCKET_PATH = 107
_LONGEST_NAME = 40


class RunDirectory:
    """Created, filled and locked by the supervisor."""

    def __init__(self, config: ServerConfig, processes: list[str]) -> None:
        """processes: the names of the status page's rows.

        Raises ConfigError naming the directory if it cannot hold the sockets' paths or the files.
        """
        parent = Path(tempfile.gettempdir())
        _remove_stale(parent)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:
            raise _cannot_use(parent, error) from error
        try:
            self._lock = _locked(self.path)
            check_path_length(self.path)
            (self.path / _CONFIG).write_bytes(msgspec.json.encode(config))
            self.page = StatusPage.create(self.path / _PAGE, processes)
        except OSError as error:
            self._remove()
            raise _cannot_use(self.path, error) from error
        except ConfigError:
            self._remove()
            raise

    def close(self) -> None:
        """Remove the directory and all in it; the page must not be used by others any more."""
        self._remove()
        os.close(self._lock)

    def _remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def read_config(path: Path) -> ServerConfig:
    """The configuration that the supervisor wrote into the run directory."""
    return msgspec.json.decode((path / _CONFIG).read_bytes(), type=ServerConfig)


def open_page(path: Path) -> StatusPage:
    return StatusPage(path / _PAGE)


def check_path_length(path: Path) -> None:
    """Raise ConfigError where the path of a socket in it would be too long for a Unix socket."""
    length = len(os.fsencode(path)) + 1 + _LONGEST_NAME
    if length > _MAX_SOCKET_PATH:
        raise ConfigError(
            f"{path}: too long for sockets: {length} bytes with a socket's name, at most "
            f"{_MAX_SOCKET_PATH}; set TMPDIR to a shorter directory"
        )


def _cannot_use(path: Path, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(f"{path}: cannot be used for sockets and status (TMPDIR): {reason}")


def _locked(path: Path) -> int:
    """A descriptor that holds the lock; the file gets its name only when it is locked."""
    unnamed = path / f".{_LOCK}"
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    unnamed.rename(path / _LOCK)
    return descriptor


def _remove_stale(parent: Path) -> None:
    for directory in parent.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            # not one of ours, or just being made
            continue
        try:
            if os.fstat(lock).st_uid != os.getuid():
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
            logger.debug("removed %s, left behind by a killed server", directory)
        except BlockingIOError:
            # its server runs
            continue
        finally:
            os.close(lock)
