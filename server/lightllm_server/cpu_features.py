"""What this process may use of the CPU: cores by affinity and cgroup quota, bf16 instructions.

Reads /proc and /sys only; no torch.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_cores", "has_bf16_instructions"]

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def available_cores(cgroup_root: Path = _CGROUP_ROOT) -> int:
    """Cores for busy threads, at least 1: the affinity mask, cut by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    quota = _quota_v2(cgroup_root) or _quota_v1(cgroup_root)
    if quota is not None:
        # a part of a core more makes the last thread wait for the next period: round down
        cores = min(cores, int(quota))
    return max(1, cores)


def _quota_v2(root: Path) -> float | None:
    """Inside a container the own cgroup is the root of the mount."""
    try:
        limit, period = (root / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(root: Path) -> float | None:
    try:
        limit = int((root / "cpu" / "cpu.cfs_quota_us").read_text())
        period = int((root / "cpu" / "cpu.cfs_period_us").read_text())
        return None if limit <= 0 else limit / period
    except (OSError, ValueError, ZeroDivisionError):
        return None


def has_bf16_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bf16 natively: AVX-512 or AMX bf16, or Arm's."""
    wanted = {"avx512_bf16", "amx_bf16", "bf16"}
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not wanted.isdisjoint(flags.partition(":")[2].split())
