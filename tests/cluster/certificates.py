"""The cluster's own certificate authority and what it signs, made anew by every `up`."""

from __future__ import annotations

from pathlib import Path

from layout import KUBERNETES_SERVICE_IP, NODE, NODE_IP, PKI
from shell import run

CA = PKI / "ca.crt"
_DAYS = "30"
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

# name → (subject, extra names); all may be used by servers and clients
_SUBJECTS = {
    "admin": ("/O=system:masters/CN=admin", ""),
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


def make(folder: Path = PKI) -> None:
    """Everything, unless it is there already; private keys are readable by root alone."""
    if (folder / "sa.pub").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    ca = folder / "ca"
    run(
        [
            *("openssl", "req", "-x509", *_CURVE, "-days", _DAYS, "-subj", "/CN=lightllm-cluster"),
            *("-keyout", f"{ca}.key", "-out", f"{ca}.crt"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        ]
    )
    for name, (subject, names) in _SUBJECTS.items():
        _sign(folder, name, subject, names)
    run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"])
    run(["openssl", "rsa", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub"])


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
