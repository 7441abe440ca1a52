"""The local registry and its images: base file system, pause image, our Dockerfile's."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import binaries
import daemons
import leftovers
from layout import CACHE, CHECKOUT, CONFIG, DATA, REGISTRY, RUN
from shell import answers, run, run_over_network, step

REGISTRY_DAEMON = "registry"
_SUITE = "bookworm"
_BASE_PACKAGES = "python3,python3-venv,python3-dev,gcc,libc6-dev,ca-certificates"
_BASE_KEY = hashlib.sha256(_BASE_PACKAGES.encode()).hexdigest()[:12]
BASE_IMAGE = f"localhost/lightllm-base:{_SUITE}-{_BASE_KEY}"
_REGISTRY_CONFIG = f"""\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {CACHE}/registry}}
  delete: {{enabled: true}}
http: {{addr: {REGISTRY}}}
"""
# no isolation by namespaces or cgroups, which a container as the host may refuse
_ENVIRONMENT = {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "overlay"}
_SCRATCH = DATA / "scratch"
_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def buildah(*arguments: str | Path, over_network: bool = False) -> str:
    """buildah over storage in the cache; over_network: up to three times. Raises ClusterError."""
    root, state = str(CACHE / "buildah" / "root"), str(RUN / "buildah")
    # a push that is killed leaves gigabytes there
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    return (run_over_network if over_network else run)(
        ["buildah", "--root", root, "--runroot", state, *arguments],
        env={**os.environ, **_ENVIRONMENT, "TMPDIR": str(_SCRATCH)},
    )


def start_registry() -> None:
    """A registry on loopback; what it holds outlasts the cluster."""
    with step("registry"):
        _keep_blob_info()
        config = CONFIG / "registry.yaml"
        config.write_text(_REGISTRY_CONFIG, encoding="utf-8")
        daemons.start(REGISTRY_DAEMON, ["docker-registry", "serve", config])
        name = REGISTRY_DAEMON
        daemons.wait((name,), lambda: answers(f"http://{REGISTRY}/v2/"), "the registry answers")


def _keep_blob_info() -> None:
    """In our cache, unless the machine has its own: without it a push compresses every layer, only
    to find that the registry has it."""
    kept = CACHE / "blob-info"
    kept.mkdir(parents=True, exist_ok=True)
    if not leftovers.BLOB_INFO.exists():
        leftovers.BLOB_INFO.unlink(missing_ok=True)
        leftovers.BLOB_INFO.parent.mkdir(parents=True, exist_ok=True)
        leftovers.BLOB_INFO.symlink_to(kept)


def push(image: str) -> str:
    """Push an image of buildah's storage; returns the name by which pods pull it."""
    name = f"{REGISTRY}/{image.removeprefix('localhost/').removeprefix(f'{REGISTRY}/')}"
    with step(f"pushing {name}"):
        _push(image, name)
    return name


def _push(image: str, name: str) -> None:
    buildah("push", "--tls-verify=false", image, f"docker://{name}")


def make_pause() -> None:
    """The image that holds each pod's namespaces."""
    with step("pause image"):
        key = binaries.content_key(binaries.PAUSE)
        _push(from_program("pause", f"pause:{key}"), f"{REGISTRY}/pause:1")


def from_program(program: str, tag: str) -> str:
    """An image of nothing but one program of `go/`; returns its name in buildah's storage."""
    name = f"localhost/{tag}"
    if name not in _images():
        with _container("scratch") as container:
            buildah("copy", container, binaries.program(program), f"/{program}")
            entrypoint = f'["/{program}"]'
            buildah("config", "--entrypoint", entrypoint, "--user", "65535:65535", container)
            buildah("commit", container, name)
    return name


def make_base() -> str:
    """The base image of our Dockerfile: Debian with Python, by debootstrap; made once."""
    if BASE_IMAGE in _images():
        return BASE_IMAGE
    with (
        step("Debian base image (the first time only)"),
        tempfile.TemporaryDirectory(dir=CACHE) as temporary,
        _container("scratch") as container,
    ):
        root = Path(temporary) / "root"
        include = f"--include={_BASE_PACKAGES}"
        run_over_network(["debootstrap", "--variant=minbase", include, _SUITE, root])
        for folder in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc"):
            shutil.rmtree(root / folder, ignore_errors=True)
        buildah("add", container, root, "/")
        buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
        buildah("commit", container, BASE_IMAGE)
    return BASE_IMAGE


def build(target: str, tag: str, dockerfile: Path = CHECKOUT / "Dockerfile") -> str:
    """Build a target over the checkout; returns the image's name in buildah's storage."""
    name, base = f"localhost/{tag}", make_base()
    with step(f"building image {tag}"), _network_settings() as settings:
        buildah(
            *("build", "--layers", f"--target={target}", f"--build-arg=BASE={base}"),
            *(f"--tag={name}", f"--file={dockerfile}", *settings, str(CHECKOUT)),
            over_network=True,
        )
    return name


@contextmanager
def _network_settings() -> Iterator[list[str]]:
    """Proxies, package indexes and authorities of this machine: mounted, never part of an image."""
    arguments = []
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        for spelled in (name, name.lower()):
            if value := os.environ.get(spelled):
                arguments.append(f"--build-arg={spelled}={value}")
    mounted = {_CA_BUNDLE: Path(os.environ.get("SSL_CERT_FILE", _CA_BUNDLE))}
    with tempfile.TemporaryDirectory() as temporary:
        pip, uv = Path(temporary) / "pip.conf", Path(temporary) / "uv.toml"
        mounted["/etc/pip.conf"] = Path("/etc/pip.conf")
        if index := os.environ.get("PIP_INDEX_URL"):
            pip.write_text(f"[global]\nindex-url = {index}\n", encoding="utf-8")
            mounted["/etc/pip.conf"] = pip
        if index := os.environ.get("UV_DEFAULT_INDEX", os.environ.get("UV_INDEX_URL", index)):
            uv.write_text(f'index-url = "{index}"\n', encoding="utf-8")
            mounted["/etc/uv/uv.toml"] = uv
        for inside, outside in mounted.items():
            if outside.is_file():
                arguments.append(f"--volume={outside}:{inside}:ro")
        yield arguments


@contextmanager
def _container(image: str) -> Iterator[str]:
    """A working container of buildah's; gone at the end."""
    container = buildah("from", image).strip()
    try:
        yield container
    finally:
        buildah("rm", container)


def _images() -> list[str]:
    return buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()
