"""What processes leave when they are not ended in order: strays, mounts, cgroups, folders."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from layout import CACHE, DATA, MARK, RUN
from shell import wait_until

_POD_LOG_LINKS = Path("/var/log/containers")
_SHIM_SOCKETS = Path("/run/containerd/s")
_DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")
# where buildah notes which layers a registry has
BLOB_INFO = Path("/var/lib/containers/cache")
# what the kubelet and buildah make at places that no setting changes
_FIXED_PLACES = (
    _DEVICE_PLUGINS,
    BLOB_INFO,
    Path("/etc/cni/net.d/cni.lock"),
)


def clean() -> None:
    """End our processes, containers' too; unmount and remove all that is no cache and no claim."""
    _kill(_marked)
    # no other kubelet is on the machine: `up` refuses beside one
    _kill(_in_pods)
    for folder in (DATA, RUN, CACHE):
        for mount in reversed(_mounts_under(folder)):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    _remove_cgroups()
    _remove_dead_sockets()
    _remove_log_links()
    shutil.rmtree(RUN, ignore_errors=True)
    for entry in DATA.iterdir() if DATA.exists() else ():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)


def _kill(found: Callable[[], list[int]]) -> None:
    """Until none is found: some start others while they are being ended."""

    def gone() -> bool:
        pids = found()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_until(gone, 20, "the cluster's processes have ended")


def _marked() -> list[int]:
    """Processes that carry our mark: daemons, shims, builds, whether noted or not."""
    mark = f"{MARK}=".encode()
    return [
        int(process.name)
        for process, environment in _proc("environ")
        if int(process.name) != os.getpid()
        and any(word.startswith(mark) for word in environment.split(b"\0"))
    ]


def _in_pods() -> list[int]:
    found: set[int] = set()
    for top in _pod_cgroups():
        for path in top.rglob("cgroup.procs"):
            with suppress(OSError):
                found.update(map(int, path.read_text(encoding="ascii").split()))
    # a process that ended and is not reaped yet is listed no more in memory's, but still in others
    return [pid for pid in found if pid and not _is_zombie(pid)]


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")


def _proc(name: str) -> Iterator[tuple[Path, bytes]]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield process, (process / name).read_bytes()


def _mounts_under(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    points = [line.split()[4].replace("\\040", " ") for line in lines]
    return [point for point in points if point.startswith(f"{folder}/") or point == str(folder)]


def _pod_cgroups() -> Iterator[Path]:
    """`kubepods` of each hierarchy, of version 1 or 2."""
    root = Path("/sys/fs/cgroup")
    return (top for top in (root / "kubepods", *root.glob("*/kubepods")) if top.is_dir())


def _remove_cgroups() -> None:
    for top in list(_pod_cgroups()):
        folders = sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True)
        for folder in (*folders, top):
            with suppress(OSError):
                folder.rmdir()


def dead_sockets() -> list[Path]:
    """Of shims and a kubelet, in folders that no setting changes. Those that are listened on are
    another containerd's."""
    paths = (*_SHIM_SOCKETS.glob("*"), _DEVICE_PLUGINS / "kubelet.sock")
    return [path for path in paths if path.is_socket() and not _is_listened_on(path)]


def _remove_dead_sockets() -> None:
    for path in dead_sockets():
        path.unlink()
    with suppress(OSError):
        _SHIM_SOCKETS.rmdir()
        _SHIM_SOCKETS.parent.rmdir()


def _is_listened_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def fixed_paths() -> list[str]:
    """What is there now of the places that no setting changes, and of the folders they are in."""
    paths = [path for place in _FIXED_PLACES for path in (place, *place.parents)]
    return sorted({str(path) for path in paths if path.exists()})


def remove_fixed(keep: Collection[str]) -> None:
    """Those of `fixed_paths` that are not in `keep`; folders only if they are empty then."""
    for place in _FIXED_PLACES:
        if str(place) in keep:
            continue
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
        for folder in place.parents:
            if str(folder) in keep:
                break
            with suppress(OSError):
                folder.rmdir()


def _remove_log_links() -> None:
    for link in _POD_LOG_LINKS.glob("*.log"):
        if link.is_symlink() and os.readlink(link).startswith(f"{DATA}/"):
            link.unlink()
    with suppress(OSError):
        _POD_LOG_LINKS.rmdir()
