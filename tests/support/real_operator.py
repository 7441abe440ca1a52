"""Runs the real operator in a test: `python -m lightllm_operator`, ended with the test."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from server_process import free_port

__all__ = ["SERVING_IMAGE", "RealOperator", "changed_copy"]

SERVING_IMAGE = "registry.test/lightllm-server:1"
_SOURCE = Path(__file__).parents[2] / "operator"


class RealOperator:
    """An operator that reaches the API server at `url`, over plain HTTP without credentials.

    folder: gets its kubeconfig and log. source: the folder of the package, for a changed copy.
    It scrapes and resyncs more often than a real one, so that tests end soon.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        image: str = SERVING_IMAGE,
        source: Path = _SOURCE,
        scrape_seconds: float = 0.2,
        resync_seconds: float = 0.4,
    ) -> None:
        folder.mkdir(parents=True)
        kubeconfig = _write_kubeconfig(folder / "kubeconfig", url)
        self._log = folder / "log"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(source),
            "KUBECONFIG": str(kubeconfig),
            "LIGHTLLM_SERVING_IMAGE": image,
            "LIGHTLLM_CPU_FOR_GPU": "true",
            "LIGHTLLM_HEALTH_PORT": str(free_port()),
            "LIGHTLLM_SCRAPE_SECONDS": str(scrape_seconds),
            "LIGHTLLM_RESYNC_SECONDS": str(resync_seconds),
            "LIGHTLLM_LEASE_SECONDS": "0.5",
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lightllm_operator"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # not the checkout, whose folder `operator` hides the standard library's module
                cwd=folder,
                env=environment,
                preexec_fn=_end_with_the_parent,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self, how: signal.Signals = signal.SIGKILL) -> int:
        """End it; the exit code."""
        if self.is_running():
            self._process.send_signal(how)
        return self._process.wait(20)


def changed_copy(folder: Path, changes: Mapping[str, Mapping[str, str]]) -> Path:
    """A `source` with other text in some modules: module → old → new, the old being there once."""
    package = folder / "lightllm_operator"
    shutil.copytree(_SOURCE / "lightllm_operator", package)
    for module, texts in changes.items():
        path = package / module
        source = path.read_text(encoding="utf-8")
        for old, new in texts.items():
            assert source.count(old) == 1, f"{module}: {old}"
            source = source.replace(old, new)
        path.write_text(source, encoding="utf-8")
    return folder


def _write_kubeconfig(path: Path, url: str) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def _end_with_the_parent() -> None:
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
