"""The local registry and its images: base file system, pause image, our Dockerfile's."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import binaries
import daemons
from layout import CACHE, CHECKOUT, CONFIG, REGISTRY
from shell import run, step, wait_until

REGISTRY_DAEMON = "registry"
BASE_IMAGE = "localhost/lightllm-base:bookworm"
_SUITE = "bookworm"
_BASE_PACKAGES = "python3,python3-venv,python3-dev,gcc,libc6-dev,ca-certificates"
_REGISTRY_CONFIG = f"""\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {CACHE}/registry}}
  delete: {{enabled: true}}
http: {{addr: {REGISTRY}}}
"""
# no isolation by namespaces or cgroups, which a container as the host may refuse
_ENVIRONMENT = {
    **os.environ,
    "BUILDAH_ISOLATION": "chroot",
    "STORAGE_DRIVER": "overlay",
}


def buildah(*arguments: str | Path) -> str:
    """buildah over storage in the cache; raises ClusterError."""
    storage = CACHE / "buildah"
    options = ["--root", storage / "root", "--runroot", storage / "run"]
    return run(["buildah", *options, *arguments], env=_ENVIRONMENT)


def start_registry() -> None:
    """A registry on loopback; what it holds outlasts the cluster."""
    with step("registry"):
        config = CONFIG / "registry.yaml"
        config.write_text(_REGISTRY_CONFIG, encoding="utf-8")
        daemons.start(REGISTRY_DAEMON, ["docker-registry", "serve", config])
        wait_until(_registry_answers, 20, "the registry answers")


def _registry_answers() -> bool:
    daemons.check(REGISTRY_DAEMON)
    try:
        with build_opener(ProxyHandler({})).open(f"http://{REGISTRY}/v2/", timeout=2):
            return True
    except (URLError, OSError):
        return False


def push(image: str) -> str:
    """Push an image of buildah's storage; returns the name by which pods pull it."""
    name = f"{REGISTRY}/{image.removeprefix('localhost/').removeprefix(f'{REGISTRY}/')}"
    buildah("push", "--tls-verify=false", image, f"docker://{name}")
    return name


def make_pause() -> None:
    """The image that holds each pod's namespaces."""
    name = f"localhost/pause:{binaries.PAUSE.key}"
    if name not in _images():
        container = buildah("from", "scratch").strip()
        buildah("copy", container, binaries.program("pause"), "/pause")
        buildah("config", "--entrypoint", '["/pause"]', "--user", "65535:65535", container)
        buildah("commit", "--rm", container, name)
    buildah("push", "--tls-verify=false", name, f"docker://{REGISTRY}/pause:1")


def make_base() -> str:
    """The base image of our Dockerfile: Debian with Python, by debootstrap; made once."""
    if BASE_IMAGE in _images():
        return BASE_IMAGE
    with step("Debian base image (the first time only)"):
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            root = Path(temporary) / "root"
            run(["debootstrap", "--variant=minbase", f"--include={_BASE_PACKAGES}", _SUITE, root])
            for folder in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc"):
                shutil.rmtree(root / folder, ignore_errors=True)
            container = buildah("from", "scratch").strip()
            buildah("add", container, root, "/")
            buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
            buildah("commit", "--rm", container, BASE_IMAGE)
    return BASE_IMAGE


def build(target: str, tag: str, dockerfile: Path = CHECKOUT / "Dockerfile") -> str:
    """Build one target of the Dockerfile; returns the image's name in buildah's storage."""
    name = f"localhost/{tag}"
    with step(f"image {tag}"):
        buildah(
            *("build", "--layers", f"--target={target}", f"--build-arg=BASE={make_base()}"),
            *(f"--tag={name}", f"--file={dockerfile}"),
            *_pass_on_network_settings(),
            dockerfile.parent,
        )
    return name


def _pass_on_network_settings() -> list[str]:
    """Proxies and extra certificate authorities of this machine, for the build alone."""
    arguments = []
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL", "UV_INDEX_URL"):
        for spelled in (name, name.lower()):
            if value := os.environ.get(spelled):
                arguments.append(f"--build-arg={spelled}={value}")
    bundle = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
    if bundle.is_file():
        arguments.append(f"--volume={bundle}:/etc/ssl/certs/ca-certificates.crt:ro")
    if Path("/etc/pip.conf").is_file():
        arguments.append("--volume=/etc/pip.conf:/etc/pip.conf:ro")
    return arguments


def _images() -> list[str]:
    return buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()
