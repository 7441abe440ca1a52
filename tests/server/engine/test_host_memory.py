"""Memory limits as the kernel's files say them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightllm_server.engine.host_memory import HostMemory, PeakMemory, read_host_memory

KIB_INFO = "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    400 kB\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(KIB_INFO)
    return tmp_path / "proc"


def test_machine(proc: Path, tmp_path: Path) -> None:
    assert read_host_memory(proc, tmp_path / "none") == HostMemory(1000 * 1024, 600 * 1024)


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("", ("memory.max", "memory.current", "inactive_file")),
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_cgroup_limit(proc: Path, tmp_path: Path, folder: str, names: tuple[str, ...]) -> None:
    group = tmp_path / "cgroup" / folder
    group.mkdir(parents=True)
    (group / names[0]).write_text("500000\n")
    (group / names[1]).write_text("300000\n")
    (group / "memory.stat").write_text(f"anon 5\n{names[2]} 100000\n")
    assert read_host_memory(proc, tmp_path / "cgroup") == HostMemory(500000, 200000)
    for unlimited in ("max\n", "9223372036854771712\n"):
        (group / names[0]).write_text(unlimited)
        machine = HostMemory(1000 * 1024, 600 * 1024)
        assert read_host_memory(proc, tmp_path / "cgroup") == machine


def test_peak_of_this_process() -> None:
    peak = PeakMemory()
    size = 64 * 2**20
    held = bytearray(b"x") * size
    del held
    assert peak.growth() >= 0.9 * size
