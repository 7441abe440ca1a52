"""How much memory this machine, or the container we are in, has and how much is in use. Linux
only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["HostMemory", "PeakMemory", "read_host_memory"]

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes; `used` counts what cannot be reclaimed."""

    total: int
    used: int


def read_host_memory(proc: Path = _PROC, cgroup: Path = _CGROUP) -> HostMemory:
    """The machine's memory, or the cgroup's where its limit is lower."""
    info = _fields(proc / "meminfo")
    total = info["MemTotal:"] * 1024
    machine = HostMemory(total, total - info["MemAvailable:"] * 1024)
    for limit_name, used_name, file_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = int((cgroup / limit_name).read_text())
            used = int((cgroup / used_name).read_text())
            # clean page cache is charged to the cgroup but given back when memory is short
            used -= _fields((cgroup / limit_name).parent / "memory.stat").get(file_key, 0)
        except (OSError, ValueError):
            continue
        if limit < total:
            return HostMemory(limit, max(used, 0))
    return machine


class PeakMemory:
    """The process's peak resident memory since the object was made, where the kernel lets it be
    reset.
    """

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc / "self"
        self._start = _fields(self._proc / "status")["VmRSS:"] * 1024
        try:
            (self._proc / "clear_refs").write_text("5")
        except OSError:
            # without the right to reset it, the peak of the whole life stands in: never too small
            return

    def growth(self) -> int:
        """Bytes of the peak above what was resident at the start."""
        return max(0, _fields(self._proc / "status")["VmHWM:"] * 1024 - self._start)


def _fields(path: Path) -> dict[str, int]:
    """`name value` lines, in the file's unit."""
    fields = {}
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            fields[words[0]] = int(words[1])
    return fields
