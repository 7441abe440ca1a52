"""CPU threads of the children, cores by cgroup quota, bf16 instructions."""

from __future__ import annotations

import os

import pytest

from lightllm_server.child_environment import child_environment
from lightllm_server.cpu_features import available_cores, has_bf16_instructions


@pytest.mark.parametrize(("cores", "tp", "threads"), [(8, 1, "8"), (8, 2, "4"), (7, 2, "3")])
@pytest.mark.parametrize("role", ["router", "rank"])
def test_router_and_ranks_share_the_cores(role, cores, tp, threads):
    assert child_environment(role, tp, {}, cores)["OMP_NUM_THREADS"] == threads


def test_more_ranks_than_cores_have_a_thread_each():
    assert child_environment("rank", 4, {}, 2)["OMP_NUM_THREADS"] == "1"


def test_the_users_threads_are_kept_for_the_model_alone():
    base = {"OMP_NUM_THREADS": "3", "PATH": "/bin"}
    assert child_environment("router", 1, base, 8)["OMP_NUM_THREADS"] == "3"
    api = child_environment("api", 1, base, 8)
    assert api["OMP_NUM_THREADS"] == "1"
    assert api["PATH"] == "/bin"
    assert base == {"OMP_NUM_THREADS": "3", "PATH": "/bin"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_cores_are_cut_by_the_quota(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("line", "has"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx2 avx512f amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("model name\t: with bf16", False),
    ],
)
def test_bf16_instructions(tmp_path, line, has):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{line}\n")
    assert has_bf16_instructions(file) is has
    assert has_bf16_instructions(tmp_path / "none") is False
