"""Kubernetes, CoreDNS, helm and two small programs of ours: built with Go once, then cached."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from errors import ClusterError
from layout import CACHE, HELM_VERSION, HERE, KUBERNETES_VERSION
from shell import run, run_over_network, step

_VERSION_PACKAGE = "k8s.io/component-base/version"
_MAJOR, _MINOR = KUBERNETES_VERSION.removeprefix("v").split(".")[:2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A Go module of `go/` and the programs to build from it.

    `fitting` is what a program's version must match for one found elsewhere to serve as well.
    """

    name: str
    packages: tuple[str, ...]
    flags: str = "-s -w"
    fitting: str | None = None

    @property
    def programs(self) -> tuple[str, ...]:
        return tuple(package.rpartition("/")[2] for package in self.packages)


KUBERNETES = Module(
    name="kubernetes",
    packages=tuple(
        f"k8s.io/kubernetes/cmd/{program}"
        for program in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        )
    ),
    flags=f"-s -w -X {_VERSION_PACKAGE}.gitVersion={KUBERNETES_VERSION} "
    f"-X {_VERSION_PACKAGE}.gitMajor={_MAJOR} -X {_VERSION_PACKAGE}.gitMinor={_MINOR}",
    fitting=rf"\bv{_MAJOR}\.{_MINOR}\.",
)
HELM = Module(
    name="helm",
    packages=("helm.sh/helm/v3/cmd/helm",),
    # helm takes the version of the cluster it renders for from its own, where there is no cluster
    flags=f"-s -w -X helm.sh/helm/v3/internal/version.version={HELM_VERSION} "
    f"-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor={_MAJOR} "
    f"-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={_MINOR}",
    fitting=r"\bv3\.",
)
COREDNS = Module(name="coredns", packages=("lightllm.test/coredns",))
PAUSE = Module(name="pause", packages=("lightllm.test/pause",))
PROBE = Module(name="probe", packages=("lightllm.test/probe",))
MODULES = (KUBERNETES, HELM, COREDNS, PAUSE, PROBE)
# the last is for the cluster's own tests
NEEDED = tuple(program for module in MODULES[:-1] for program in module.programs)


@functools.cache
def program(name: str) -> Path:
    """Where a program is; raises ClusterError if it is not built yet."""
    path = _find(name)
    if path is None:
        raise ClusterError(f"{name}: not built yet, run `up`")
    return path


def build(names: Iterable[str] = NEEDED) -> None:
    """Build what is missing; on two cores about a quarter of an hour the first time."""
    missing = [name for name in names if _find(name) is None]
    if missing and shutil.which("go") is None:
        raise ClusterError(
            f"{', '.join(missing)}: not in the cache, and there is no Go to build them; install "
            f"Go ≥ 1.25, or set KUBEBUILDER_ASSETS to a folder with those of {KUBERNETES_VERSION}"
        )
    for name in missing:
        with step(f"building {name} (the first time only)"):
            _build(name)


def content_key(module: Module) -> str:
    """Changes with the module's files and flags."""
    digest = hashlib.sha256(module.flags.encode())
    for path in sorted((HERE / "go" / module.name).iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _module(name: str) -> Module:
    for module in MODULES:
        if name in module.programs:
            return module
    raise ClusterError(f"{name}: none of the programs built here")


def _find(name: str) -> Path | None:
    """One of KUBEBUILDER_ASSETS or PATH that fits, else the cached one."""
    module = _module(name)
    if module.fitting:
        folders = (os.environ.get("KUBEBUILDER_ASSETS"), os.environ.get("PATH"))
        for found in (shutil.which(name, path=path) for path in folders if path):
            if found and _fits(found, module.fitting):
                return Path(found)
    path = _folder(module) / name
    return path if path.is_file() else None


@functools.cache
def _fits(path: str, fitting: str) -> bool:
    asked = {"kubectl": ("version", "--client"), "helm": ("version", "--short")}
    try:
        said = run([path, *asked.get(Path(path).name, ("--version",))])
    except ClusterError:
        return False
    return re.search(fitting, said) is not None


@functools.cache
def _folder(module: Module) -> Path:
    """In the cache, by content and Go version; where there is no Go, whichever built it."""
    stem = CACHE / "bin" / f"{module.name}-{content_key(module)}"
    if shutil.which("go") is None:
        built = sorted(stem.parent.glob(f"{stem.name}-go*"))
        return built[-1] if built else stem
    go_version = run(["go", "env", "GOVERSION"], cwd=HERE / "go" / module.name).strip()
    return stem.with_name(f"{stem.name}-{go_version.replace(' ', '-')}")


def _build(name: str) -> None:
    """Into a temporary file first: a build that was killed leaves no broken program."""
    module = _module(name)
    [package] = [each for each in module.packages if each.endswith(f"/{name}")]
    target = _folder(module) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        made = Path(temporary) / name
        build = ("go", "build", "-trimpath", "-ldflags", module.flags)
        run_over_network(
            [*build, "-o", str(made), package],
            cwd=HERE / "go" / module.name,
            env={**os.environ, "CGO_ENABLED": "0"},
        )
        made.replace(target)
