"""The listening sockets, bound by the supervisor so that a port in use is found before any load."""

from __future__ import annotations

import socket

from lightllm_server.config import HttpConfig
from lightllm_server.errors import ConfigError

__all__ = ["base_url", "bind_listeners"]

_BACKLOG = 2048


def bind_listeners(config: HttpConfig) -> list[socket.socket]:
    """The main port's socket, then the metrics port's if there is one; both listen already.

    A port that is only bound could be bound by a second server too. Raises ConfigError that names
    the option, the address and the cause.
    """
    wanted = [("--port", config.port)]
    if config.metrics_port is not None:
        wanted.append(("--metrics-port", config.metrics_port))
    listeners: list[socket.socket] = []
    try:
        for option, port in wanted:
            listeners.append(_listen(config.host, port, option))
    except ConfigError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen(host: str, port: int, option: str) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror or error}") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on --host {host} {option} {port}: {reason}") from error
    return listener


def base_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
