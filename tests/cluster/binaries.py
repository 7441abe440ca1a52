"""Kubernetes, CoreDNS, helm and the pause program: built with Go once per version, then cached."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from errors import ClusterError
from layout import CACHE, HELM_VERSION, HERE, KUBERNETES_VERSION
from shell import run, step

_VERSION_PACKAGE = "k8s.io/component-base/version"
_MAJOR, _MINOR = KUBERNETES_VERSION.removeprefix("v").split(".")[:2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A Go module of `go/` and the programs to build from it."""

    name: str
    packages: tuple[str, ...]
    flags: str = "-s -w"

    @property
    def programs(self) -> tuple[str, ...]:
        return tuple(package.rpartition("/")[2] for package in self.packages)

    @property
    def key(self) -> str:
        """Changes with the module's files, the flags and the Go version."""
        digest = hashlib.sha256(f"{self.packages}{self.flags}".encode())
        for path in sorted((HERE / "go" / self.name).iterdir()):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]


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
)
HELM = Module(
    name="helm",
    packages=("helm.sh/helm/v3/cmd/helm",),
    flags=f"-s -w -X helm.sh/helm/v3/internal/version.version={HELM_VERSION} "
    f"-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor={_MAJOR} "
    f"-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={_MINOR}",
)
COREDNS = Module(name="coredns", packages=("lightllm.test/coredns",))
PAUSE = Module(name="pause", packages=("lightllm.test/pause",))
MODULES = (KUBERNETES, HELM, COREDNS, PAUSE)


def folder(module: Module) -> Path:
    """The folder with the module's programs: KUBEBUILDER_ASSETS if it has all, else the cache."""
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given and all((Path(given) / program).is_file() for program in module.programs):
        return Path(given)
    return CACHE / "bin" / f"{module.name}-{module.key}"


def program(name: str) -> Path:
    """The path of a built program; raises ClusterError if it was not built."""
    for module in MODULES:
        if name in module.programs:
            path = folder(module) / name
            if not path.is_file():
                raise ClusterError(f"{path}: not built yet, run `up`")
            return path
    raise ClusterError(f"{name}: none of the programs built here")


def build(modules: tuple[Module, ...] = MODULES) -> None:
    """Build what the cache lacks; on two cores about a quarter of an hour the first time."""
    for module in modules:
        target = folder(module)
        if target.is_dir():
            continue
        if shutil.which("go") is None:
            raise ClusterError(
                f"{', '.join(module.programs)}: not in the cache, and there is no Go to build "
                "them; install Go ≥ 1.25, or set KUBEBUILDER_ASSETS to a folder that has them"
            )
        with step(f"building {', '.join(module.programs)} (the first time only)"):
            _build(module, target)


def _build(module: Module, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": temporary}
        command = ["go", "install", "-trimpath", "-ldflags", module.flags, *module.packages]
        run(command, cwd=HERE / "go" / module.name, env=environment)
        built = Path(temporary)
        built.chmod(0o755)
        # another run may have been quicker
        if not target.exists():
            shutil.copytree(built, f"{temporary}.done")
            os.rename(f"{temporary}.done", target)
