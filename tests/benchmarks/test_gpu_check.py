"""`make gpu-check` without a GPU: all of its code runs, and nothing that it prints is a figure."""

from __future__ import annotations

import importlib
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LABEL = "not a measurement: a dry run on the CPU at tiny shapes"


@pytest.fixture
def load(monkeypatch):
    """Imports a module of scripts/gpu_check."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "gpu_check"))

    def load_module(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load_module


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["kernels", "engine", "bench"])
def test_dry_run(stage, tmp_path):
    result = subprocess.run(
        ["make", "gpu-check", f"STAGE={stage}", "DRY_RUN=1", f"GPU_PYTHON={sys.executable}"],
        env=os.environ | {"OUT": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    lines = result.stdout.splitlines()
    assert lines.count(LABEL) == 2
    cases = [line for line in lines if re.match(r"passed|skipped|FAILED", line)]
    assert len(cases) >= 7
    assert all(line.startswith("passed") and "=" not in line for line in cases), cases
    assert not list(tmp_path.iterdir())


def test_a_stage_ends_in_time_and_keeps_what_it_has(load, tmp_path, monkeypatch, capsys):
    cases = load("cases")
    monkeypatch.setenv("OUT", str(tmp_path))
    now = iter([0.0, 1.0, 1.0, 2.0, 5.0, 5.0, 9.0, 11.0])
    monkeypatch.setattr(cases.time, "monotonic", lambda: next(now))
    results = cases.Results("kernels", {"device": "none"}, dry_run=False)

    def fails():
        raise ValueError("wrong")

    def good():
        return {"speed": 3.5, "rows": [{"name": "a", "ms": 1.25}]}

    todo = [cases.Case("one", good), cases.Case("two", fails), cases.Case("late", good)]
    assert not cases.run_cases(todo, results, seconds=10.0)
    (kept,) = tmp_path.glob("*-gpu-kernels.json")
    outcomes = {case["case"]: case["outcome"] for case in json.loads(kept.read_text())["cases"]}
    assert outcomes == {"one": "passed", "two": "FAILED", "late": "skipped"}
    page = kept.with_suffix(".md").read_text()
    assert "| one | passed | seconds 1.0; speed 3.5 |" in page
    assert "| a | 1.25 |" in page
    assert "ValueError: wrong" in capsys.readouterr().out


def test_lengths_match_the_published_filter(load):
    module = load("sharegpt_like")
    requests = module.make_requests(2000, rate=200.0, vocab_size=32000)
    prompts = [len(request.prompt_ids) for request in requests]
    outputs = [request.output_len for request in requests]
    assert min(prompts) >= 4
    assert min(outputs) >= 4
    assert max(prompts) <= 1024
    assert max(p + o for p, o in zip(prompts, outputs, strict=True)) <= 2048
    assert statistics.mean(prompts) == pytest.approx(161, rel=0.06)
    assert statistics.mean(outputs) == pytest.approx(338, rel=0.06)
    # 2000 arrivals at 200 per second
    assert requests[-1].due == pytest.approx(10, rel=0.1)
    assert requests == module.make_requests(2000, rate=200.0, vocab_size=32000)


def test_gaps_between_kernels(load):
    gaps = load("gaps").gaps_between([(150.0, 160.0), (0.0, 20.0), (10.0, 30.0), (35.0, 40.0)])
    assert gaps == {"longest_gap_us": 110.0, "gaps_over_100_us": 1, "idle_share": 0.7188}
    assert load("gaps").gaps_between([])["idle_share"] == 0.0


@pytest.mark.slow
def test_profile_of_a_step():
    command = [sys.executable, "benchmarks/engine/profile_step.py", "--steps", "2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n| ") >= 9
