"""The cluster's own certificate authority, what it signs, and the admin's token."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

from layout import KUBERNETES_SERVICE_IP, NODE, NODE_IP, PKI
from shell import run, succeeds

CA = PKI / "ca.crt"
TOKENS = PKI / "tokens.csv"
_LAST = PKI / "sa.pub"
_DAYS = "30"
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

# name → (subject, extra names); all may be used by servers and clients
_SUBJECTS = {
    # the API server as a client of the kubelet
    "kubelet-client": ("/O=system:masters/CN=kube-apiserver-kubelet-client", ""),
    "apiserver": (
        "/CN=kube-apiserver",
        f"IP:{NODE_IP},IP:{KUBERNETES_SERVICE_IP},IP:127.0.0.1,DNS:localhost,DNS:kubernetes,"
        "DNS:kubernetes.default,DNS:kubernetes.default.svc,"
        "DNS:kubernetes.default.svc.cluster.local",
    ),
    "etcd": ("/CN=etcd", "IP:127.0.0.1,DNS:localhost"),
    "kubelet": (f"/O=system:nodes/CN=system:node:{NODE}", f"IP:{NODE_IP},DNS:{NODE}"),
    "controller-manager": ("/CN=system:kube-controller-manager", "IP:127.0.0.1,DNS:localhost"),
    "scheduler": ("/CN=system:kube-scheduler", "IP:127.0.0.1,DNS:localhost"),
    "kube-proxy": ("/CN=system:kube-proxy", ""),
    "coredns": ("/CN=lightllm:coredns", ""),
}


def certificate(name: str) -> Path:
    return PKI / f"{name}.crt"


def key(name: str) -> Path:
    return PKI / f"{name}.key"


def are_valid() -> bool:
    """Whether all are there, and hold for a day more."""
    day = ("-checkend", "86400", "-noout", "-in")
    return all(path.exists() for path in (TOKENS, _LAST)) and all(
        succeeds(["openssl", "x509", *day, certificate(name)]) for name in ("ca", *_SUBJECTS)
    )


def make(folder: Path = PKI, names: Iterable[str] = tuple(_SUBJECTS)) -> None:
    """An authority, what it signs for `names`, the service accounts' key and the admin's token.

    They are new each time; private keys and the token are readable by their owner alone.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    ca = folder / "ca"
    run(
        [
            *("openssl", "req", "-x509", *_CURVE, "-days", _DAYS, "-subj", "/CN=lightllm-cluster"),
            *("-keyout", f"{ca}.key", "-out", f"{ca}.crt"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        ]
    )
    for name in names:
        _sign(folder, name, *_SUBJECTS[name])
    tokens = folder / TOKENS.name
    tokens.touch(mode=0o600)
    tokens.write_text(f"{secrets.token_urlsafe(32)},admin,admin,system:masters\n", encoding="ascii")
    run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"])
    run(["openssl", "rsa", "-in", folder / "sa.key", "-pubout", "-out", folder / _LAST.name])


def admin_token(folder: Path = PKI) -> str:
    return (folder / TOKENS.name).read_text(encoding="ascii").partition(",")[0]


def _sign(folder: Path, name: str, subject: str, names: str) -> None:
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    lines = ["extendedKeyUsage=serverAuth,clientAuth"]
    if names:
        lines.append(f"subjectAltName={names}")
    extensions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    run(
        [
            *("openssl", "req", *_CURVE, "-subj", subject),
            *("-keyout", folder / f"{name}.key", "-out", request),
        ]
    )
    run(
        [
            *("openssl", "x509", "-req", "-days", _DAYS, "-in", request, "-extfile", extensions),
            *("-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial"),
            *("-out", folder / f"{name}.crt"),
        ]
    )
    request.unlink()
    extensions.unlink()
