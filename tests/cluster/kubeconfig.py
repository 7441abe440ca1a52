"""Kubeconfig files: the API server's address, the authority to trust, the client's credentials."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import certificates
from layout import API_URL, CONFIG, KUBECONFIG, PKI


def path(name: str) -> Path:
    return KUBECONFIG if name == "admin" else CONFIG / f"{name}.kubeconfig"


def write(name: str, *, server: str = API_URL, pki: Path = PKI, target: Path | None = None) -> Path:
    """The admin's by token, others' by certificate; for their owner alone. JSON is YAML too."""

    def embedded(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    user = {"token": certificates.admin_token(pki)}
    if name != "admin":
        user = {
            "client-certificate-data": embedded(pki / f"{name}.crt"),
            "client-key-data": embedded(pki / f"{name}.key"),
        }
    cluster = {"server": server, "certificate-authority-data": embedded(pki / "ca.crt")}
    context = {"cluster": "lightllm", "user": name, "namespace": "default"}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lightllm", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "lightllm", "context": context}],
        "current-context": "lightllm",
    }
    target = target or path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.touch(mode=0o600)
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return target
