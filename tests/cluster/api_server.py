"""etcd and an API server alone, on loopback and without root: what tests of a CRD need."""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import binaries
import certificates
import control_plane
import kubeconfig
from errors import ClusterError
from shell import wait_until

_LOOPBACK = "127.0.0.1"
_PROGRAMS = {"etcd": "etcd-server", "openssl": "openssl"}
# nothing runs controllers here, which would make every namespace's service account
_EXTRA = (
    "--authorization-mode=RBAC",
    "--disable-admission-plugins=ServiceAccount",
    "--endpoint-reconciler-type=none",
)


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """The admin's kubeconfig of an API server that ends with the block, or with this process.

    `folder` gets data, keys and logs. The first time, the API server is built with Go (minutes).
    Raises ClusterError, e.g. naming the Debian package that is missing.
    """
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise ClusterError(f"no {program} on PATH; on Debian it comes with {package}")
    binaries.build(["kube-apiserver"])
    pki = folder / "pki"
    certificates.make(pki, ("etcd", "apiserver"))
    client_port, peer_port, api_port = _free_ports(3)
    etcd = control_plane.etcd_command(folder / "etcd", pki, client_port, peer_port)
    server = control_plane.api_server_command(
        pki, client_port, address=_LOOPBACK, port=api_port, extra=_EXTRA
    )
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(each, folder)) for each in (etcd, server)]

        def ready() -> bool:
            for process in processes:
                if process.poll() is not None:
                    raise ClusterError(f"a part has ended; its log is in {folder}")
            return control_plane.is_ready(_LOOPBACK, api_port, pki)

        wait_until(ready, 60, f"the API server of {folder} answers")
        yield kubeconfig.write(
            "admin",
            server=f"https://{_LOOPBACK}:{api_port}",
            pki=pki,
            target=folder / "kubeconfig",
        )


@contextmanager
def _process(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (
        (folder / f"{Path(command[0]).name}.log").open("wb") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            preexec_fn=_end_with_the_parent,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _end_with_the_parent() -> None:
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind((_LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
