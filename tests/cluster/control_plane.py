"""etcd, the API server, the controller manager and the scheduler, as processes of this machine."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from contextlib import closing
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

import binaries
import certificates
import daemons
import kubeconfig
from layout import (
    API_PORT,
    CONFIG,
    DATA,
    ETCD_CLIENT_PORT,
    ETCD_PEER_PORT,
    LOGS,
    NODE_IP,
    PKI,
    POD_RANGE,
    SERVICE_RANGE,
)
from shell import run, step

NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")

# which verbs the operator's service account uses, and when it had its roles, is read by the tests
_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    userGroups: ["system:serviceaccounts"]
  - level: Metadata
    verbs: [create, patch, delete]
    resources:
      - group: rbac.authorization.k8s.io
        resources: [rolebindings, clusterrolebindings]
  - level: None
"""


def etcd_command(data: Path, pki: Path, client_port: int, peer_port: int) -> list[str]:
    """etcd on loopback, for clients with a certificate of `pki`; without fsync: nothing is kept."""
    client, peer = f"https://127.0.0.1:{client_port}", f"https://127.0.0.1:{peer_port}"
    tls = {
        "cert-file": pki / "etcd.crt",
        "key-file": pki / "etcd.key",
        "trusted-ca-file": pki / "ca.crt",
        "client-cert-auth": "true",
    }
    return [
        "etcd",
        f"--data-dir={data}",
        "--unsafe-no-fsync",
        "--log-level=warn",
        "--quota-backend-bytes=4294967296",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        *(f"--{name}={value}" for name, value in tls.items()),
        *(f"--peer-{name}={value}" for name, value in tls.items()),
    ]


def api_server_command(
    pki: Path, etcd_port: int, *, address: str, port: int, extra: Sequence[str] = ()
) -> list[str]:
    """The API server, for clients with a certificate or the token of `pki`."""
    return [
        str(binaries.program("kube-apiserver")),
        f"--etcd-servers=https://127.0.0.1:{etcd_port}",
        f"--etcd-cafile={pki / 'ca.crt'}",
        f"--etcd-certfile={pki / 'etcd.crt'}",
        f"--etcd-keyfile={pki / 'etcd.key'}",
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={port}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--token-auth-file={pki / 'tokens.csv'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--anonymous-auth=false",
        *extra,
    ]


def start() -> None:
    """Start what does not run, in order, and wait until the API server is ready."""
    audit = CONFIG / "audit-policy.yaml"
    audit.write_text(_AUDIT_POLICY, encoding="utf-8")
    LOGS.mkdir(parents=True, exist_ok=True)
    with step("etcd and the API server"):
        daemons.start("etcd", etcd_command(DATA / "etcd", PKI, ETCD_CLIENT_PORT, ETCD_PEER_PORT))
        daemons.start(
            "kube-apiserver",
            api_server_command(
                PKI,
                ETCD_CLIENT_PORT,
                address=NODE_IP,
                port=API_PORT,
                extra=[
                    "--authorization-mode=Node,RBAC",
                    "--enable-admission-plugins=NodeRestriction",
                    "--allow-privileged=true",
                    "--kubelet-preferred-address-types=InternalIP",
                    f"--kubelet-certificate-authority={PKI / 'ca.crt'}",
                    f"--kubelet-client-certificate={PKI / 'kubelet-client.crt'}",
                    f"--kubelet-client-key={PKI / 'kubelet-client.key'}",
                    f"--audit-policy-file={audit}",
                    f"--audit-log-path={LOGS / 'audit.log'}",
                    "--audit-log-maxsize=200",
                    "--audit-log-maxbackup=2",
                ],
            ),
        )
        daemons.wait(("etcd", "kube-apiserver"), is_ready, "the API server answers")
    _start_clients()


def _start_clients() -> None:
    controller_manager = kubeconfig.write("controller-manager")
    scheduler = kubeconfig.write("scheduler")
    with step("controller manager and scheduler"):
        daemons.start(
            "kube-controller-manager",
            [
                binaries.program("kube-controller-manager"),
                *_secured("controller-manager", controller_manager),
                f"--root-ca-file={PKI / 'ca.crt'}",
                f"--service-account-private-key-file={PKI / 'sa.key'}",
                "--use-service-account-credentials=true",
                f"--cluster-cidr={POD_RANGE}",
            ],
        )
        daemons.start(
            "kube-scheduler",
            [binaries.program("kube-scheduler"), *_secured("scheduler", scheduler)],
        )
        for name in NAMES:
            daemons.check(name)


def _secured(name: str, config: Path) -> list[str]:
    return [
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        "--bind-address=127.0.0.1",
        f"--tls-cert-file={certificates.certificate(name)}",
        f"--tls-private-key-file={certificates.key(name)}",
        "--leader-elect=false",
    ]


def is_ready(address: str = NODE_IP, port: int = API_PORT, pki: Path = PKI) -> bool:
    """Whether the API server answers an authenticated request over a verified connection."""
    try:
        context = ssl.create_default_context(cafile=pki / "ca.crt")
        connection = HTTPSConnection(address, port, timeout=3, context=context)
        token = {"Authorization": f"Bearer {certificates.admin_token(pki)}"}
        with closing(connection):
            connection.request("GET", "/readyz", headers=token)
            return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False


def kubectl(*arguments: str | Path, stdin: str | None = None) -> str:
    """kubectl as the cluster's admin; raises ClusterError."""
    config = f"--kubeconfig={kubeconfig.path('admin')}"
    return run([binaries.program("kubectl"), config, *arguments], stdin=stdin)
