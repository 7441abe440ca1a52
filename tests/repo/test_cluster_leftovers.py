"""What `make demo-down` takes back of the places that no setting of the cluster changes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

CLUSTER = Path(__file__).parents[1] / "cluster"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short path, since a socket's is at most 107 bytes long."""
    with tempfile.TemporaryDirectory(prefix="left-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With its places under `tmp_path`."""
    monkeypatch.syspath_prepend(CLUSTER)
    import leftovers

    plugins = tmp_path / "kubelet" / "device-plugins"
    monkeypatch.setattr(leftovers, "_SHIM_SOCKETS", tmp_path / "containerd" / "s")
    monkeypatch.setattr(leftovers, "_DEVICE_PLUGINS", plugins)
    places = (plugins, tmp_path / "cni" / "cni.lock", tmp_path / "containers" / "cache")
    monkeypatch.setattr(leftovers, "_FIXED_PLACES", places)
    return leftovers


def bound(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_sockets_go_that_nobody_listens_on(leftovers: ModuleType, tmp_path: Path) -> None:
    shims, plugins = tmp_path / "containerd" / "s", tmp_path / "kubelet" / "device-plugins"
    for dead in (shims / "a", plugins / "kubelet.sock"):
        bound(dead).close()
    with bound(shims / "b"):
        leftovers._remove_dead_sockets()
        assert [path.name for path in shims.iterdir()] == ["b"]
    assert list(plugins.iterdir()) == []
    leftovers._remove_dead_sockets()
    assert not shims.parent.exists()


def test_what_was_there_before_stays_and_the_rest_goes(
    leftovers: ModuleType, tmp_path: Path
) -> None:
    for name in ("kubelet", "kept"):
        (tmp_path / name).mkdir()
    before = leftovers.fixed_paths()
    assert str(tmp_path / "kubelet") in before
    (tmp_path / "kubelet" / "device-plugins").mkdir()
    (tmp_path / "kubelet" / "device-plugins" / "checkpoint").touch()
    (tmp_path / "cni").mkdir()
    (tmp_path / "cni" / "cni.lock").touch()
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers" / "cache").symlink_to(tmp_path / "kept")
    noted = leftovers.fixed_paths()
    leftovers.remove_fixed(noted)
    assert leftovers.fixed_paths() == noted
    leftovers.remove_fixed(before)
    assert leftovers.fixed_paths() == before
    assert {path.name for path in tmp_path.iterdir()} == {"kubelet", "kept"}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="the cache is that of root's cluster")
def test_the_cache_goes_unless_a_cluster_uses_it(tmp_path: Path) -> None:
    cache = tmp_path / "lightllm-kubernetes"
    (cache / "cluster" / "bin").mkdir(parents=True)
    (tmp_path / "others").mkdir()
    done = subprocess.run(
        [sys.executable, CLUSTER / "cli.py", "clean-cache"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    in_use = Path("/var/lib/lightllm-cluster").exists()
    assert done.returncode == in_use, done.stderr
    assert ("run `down` first" in done.stderr) == in_use
    assert cache.exists() == in_use
    assert (tmp_path / "others").exists()
