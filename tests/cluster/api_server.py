"""etcd and an API server, on loopback and without root; with controllers, all but nodes is real."""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPSConnection
from pathlib import Path

import binaries
import certificates
import control_plane
import kubeconfig
from errors import ClusterError
from shell import wait_until

_LOOPBACK = "127.0.0.1"
_PROGRAMS = {"etcd": "etcd-server", "openssl": "openssl"}
# namespaces get no service account here, which admission would ask for
_EXTRA = (
    "--authorization-mode=RBAC",
    "--disable-admission-plugins=ServiceAccount",
    "--endpoint-reconciler-type=none",
)
# all that acts on what the operator makes; pods have loopback addresses here, which no
# EndpointSlice may hold
_CONTROLLERS = (
    "deployment-controller",
    "replicaset-controller",
    "job-controller",
    "disruption-controller",
    "garbage-collector-controller",
    "namespace-controller",
)


@contextmanager
def running(
    folder: Path, *, controllers: bool = False, crds: Sequence[Path] = ()
) -> Iterator[Path]:
    """The admin's kubeconfig of an API server that ends with the block, or with this process.

    `folder` gets data, keys and logs. `controllers`: Deployments, Jobs and owner references work
    too, while nothing schedules or runs the pods. `crds` are there before those start: the garbage
    collector looks for new kinds only twice a minute. The first time, the programs are built with
    Go (minutes). Raises ClusterError, e.g. naming the Debian package that is missing.
    """
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise ClusterError(f"no {program} on PATH; on Debian it comes with {package}")
    binaries.build(["kube-apiserver", *(["kube-controller-manager"] if controllers else [])])
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
        config = kubeconfig.write(
            "admin",
            server=f"https://{_LOOPBACK}:{api_port}",
            pki=pki,
            target=folder / "kubeconfig",
        )
        for crd in crds:
            _create_crd(crd, api_port, pki)
        if controllers:
            stack.enter_context(_process(_controller_manager_command(config), folder))
        yield config


def _controller_manager_command(config: Path) -> list[str]:
    return [
        str(binaries.program("kube-controller-manager")),
        f"--kubeconfig={config}",
        f"--controllers={','.join(_CONTROLLERS)}",
        "--leader-elect=false",
        # it serves nobody
        "--secure-port=0",
    ]


def _create_crd(path: Path, port: int, pki: Path) -> None:
    """Create it, and wait until its resources are served."""
    context = ssl.create_default_context(cafile=pki / "ca.crt")
    headers = {
        "Authorization": f"Bearer {certificates.admin_token(pki)}",
        "Content-Type": "application/yaml",
    }

    def request(method: str, url: str, body: bytes | None = None) -> tuple[int, str]:
        connection = HTTPSConnection(_LOOPBACK, port, timeout=10, context=context)
        with closing(connection):
            connection.request(method, url, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    collection = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    status, said = request("POST", collection, path.read_bytes())
    if status != 201:
        raise ClusterError(f"{path} was refused: {said}")
    made = json.loads(said)["spec"]
    resources = f"/apis/{made['group']}/{made['versions'][0]['name']}/{made['names']['plural']}"
    wait_until(lambda: request("GET", resources)[0] == 200, 30, f"{resources} is served")


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
