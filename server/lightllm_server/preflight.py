"""What must hold before the first process is started, so that a refusal takes a second at most."""

from __future__ import annotations

from pathlib import Path

from lightllm_server.check import check_engine
from lightllm_server.config import HttpConfig, ServerConfig
from lightllm_server.errors import ConfigError

__all__ = ["preflight"]


def preflight(config: ServerConfig) -> None:
    """Raise ConfigError that names option or file, and the cause."""
    check_engine(config.engine)
    _check_api_keys(config.http)


def _check_api_keys(config: HttpConfig) -> None:
    if config.api_key_file is None:
        return
    path = Path(config.api_key_file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path}: cannot be read: {error}") from error
    if not any(line.strip() for line in lines):
        raise ConfigError(f"--api-key-file {path}: holds no key")
