"""`make gpu-check` without a GPU: all of its code runs, and nothing that it prints is a figure."""

from __future__ import annotations

import importlib
import json
import os
import re
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LABEL = "not a measurement: a dry run on the CPU at tiny shapes"


@pytest.fixture
def load(monkeypatch):
    """Imports a module of scripts/gpu_check."""
    for folder in ("benchmarks/workloads", "benchmarks/kernels", "scripts/gpu_check"):
        monkeypatch.syspath_prepend(str(ROOT / folder))

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


WORKER = """
import json, os, sys, time
NAMES = ["good", "wrong", "hangs", "dies", "loses the device", "slow", "last"]
first, report = (int(sys.argv[sys.argv.index(name) + 1]) for name in ("--first", "--report"))
failed = sys.argv[sys.argv.index("--failed") + 1]
pipe = os.fdopen(report, "w", buffering=1)
def tell(**message): pipe.write(json.dumps(message) + "\\n")
tell(cases=NAMES, machine={"device": "Acme X1, 1.0, 5 MiB"})
for name in NAMES[first:]:
    tell()
    time.sleep({"hangs": 60, "slow": 1}.get(name, 0))
    if name == "dies":
        os._exit(3)
    outcome = "FAILED" if name in ("wrong", "loses the device") else "passed"
    figures = {"pid": os.getpid(), "failed": failed, "rows": [{"ms": 1.25}]}
    tell(outcome=outcome, seconds=0.5, figures=figures)
    if name == "loses the device":
        sys.exit(75)
"""


def run_stage(load, monkeypatch, folder, limits, case_seconds=None):
    """(whether it passed, case → what is kept of it, the page). case_seconds: how far each
    case sets the stage's clock, if it does not show the time."""
    supervise, cases = load("supervise"), load("cases")
    monkeypatch.setenv("OUT", str(folder))
    monkeypatch.setattr(supervise, "_GRACE_SECONDS", 0.2)
    if case_seconds is not None:
        elapsed = property(lambda stage: case_seconds * len(stage.results.cases))
        monkeypatch.setattr(supervise.Stage, "_seconds", elapsed)
    results = cases.Results("kernels", dry_run=False)
    command = [sys.executable, "-c", WORKER]
    passed = supervise.Stage(command, results, supervise.Limits(*limits)).run()
    (kept,) = folder.glob("*-gpu-kernels-acme-x1.json")
    document = json.loads(kept.read_text())
    assert document["machine"] == results.machine
    kept_cases = {case["case"]: case for case in document["cases"]}
    assert len(kept_cases) == len(document["cases"])
    return passed, kept_cases, kept.with_suffix(".md").read_text()


def test_no_case_costs_another_one_its_turn(load, tmp_path, monkeypatch):
    passed, cases, page = run_stage(load, monkeypatch, tmp_path, (4.0, 60.0, 60.0))
    assert not passed
    outcomes = {name: case["outcome"] for name, case in cases.items()}
    assert outcomes == {
        "good": "passed",
        "wrong": "FAILED",
        "hangs": "FAILED",
        "dies": "FAILED",
        "loses the device": "FAILED",
        "slow": "passed",
        "last": "passed",
    }
    # the same process goes on behind a wrong result, another one behind all else
    workers = [cases[name]["pid"] for name in ("good", "wrong", "loses the device", "last")]
    assert workers[0] == workers[1]
    assert len(set(workers)) == 3
    assert re.fullmatch(r"was ended after \d+ s", cases["hangs"]["error"])
    # of the 60 s that it sleeps
    assert 4 <= cases["hangs"]["seconds"] < 40
    assert re.fullmatch(r"ended its process, status 3, after \d+ s", cases["dies"]["error"])
    assert cases["dies"]["seconds"] < 4
    assert f"| good | passed | seconds 0.5; pid {workers[0]}; failed  |" in page
    # each worker is told what failed before it
    assert [cases[name]["failed"] for name in ("good", "loses the device", "last")] == [
        "",
        "1,2,3",
        "1,2,3,4",
    ]
    assert "| 1.25 |" in page


def test_a_stage_ends_in_time(load, tmp_path, monkeypatch):
    passed, cases, _ = run_stage(load, monkeypatch, tmp_path, (60.0, 1.0, 60.0), case_seconds=2.0)
    assert passed
    assert [case["outcome"] for case in cases.values()] == ["passed", *["skipped"] * 6]


def test_a_worker_that_cannot_start_fails_the_stage(load, capfd):
    supervise, cases = load("supervise"), load("cases")
    results = cases.Results("kernels", dry_run=True)
    command = [sys.executable, "-c", "import no_such_module"]
    assert not supervise.Stage(command, results, supervise.NO_LIMITS).run()
    assert "no_such_module" in capfd.readouterr().err


@pytest.mark.parametrize("failed", [set(), {0}])
def test_what_is_wrong_is_not_timed(failed, load, monkeypatch):
    """Also if it was seen to be wrong by a worker before this one."""
    worker, cases = load("worker"), load("cases")

    def fail():
        raise AssertionError("wrong")

    listed = [
        cases.Case("one kernel", fail, checks="bench_one"),
        cases.Case("another", dict, checks="bench_another"),
        cases.Case("bench_one", dict, needs_checked="bench_one"),
        cases.Case("bench_another", dict, needs_checked="bench_another"),
    ]
    stage = SimpleNamespace(make_cases=lambda device, *, tiny: listed)
    monkeypatch.setitem(sys.modules, "kernel_cases", stage)
    monkeypatch.setattr(worker, "describe", lambda device: {})
    monkeypatch.setattr(worker.faulthandler, "enable", lambda: None)
    reader, writer = os.pipe()
    given = {"dry_run": True, "only": "", "first": len(failed), "failed": failed}
    assert worker.work("kernels", **given, report=writer) == 0
    with open(reader, encoding="utf-8") as pipe:
        messages = [json.loads(line) for line in pipe]
    outcomes = [message["outcome"] for message in messages if "outcome" in message]
    assert outcomes == ["FAILED", "passed", "skipped", "passed"][len(failed) :]


def test_a_case_that_cannot_run_says_why_and_the_rest_has_its_own_file(load, tmp_path, monkeypatch):
    cases = load("cases")
    monkeypatch.setenv("OUT", str(tmp_path))

    def skip():
        raise cases.SkipError("not installed: fastapi")

    results = cases.Results("bench", dry_run=False, only="HTTP, 8B")
    results.machine = {"device": "cpu"}
    results.add("one", *cases.carry_out(cases.Case("one", dict)))
    results.add("two", *cases.carry_out(cases.Case("two", skip)))
    assert results.all_passed
    assert results.summary() == "1 passed, 0 FAILED, 1 skipped\n  skipped: two"
    (page,) = tmp_path.glob("*-gpu-bench-cpu-http-8b.md")
    assert "| two | skipped | seconds 0.0; why not installed: fastapi |" in page.read_text()


def test_a_case_that_fails_midway_keeps_its_figures(load, capsys):
    cases = load("cases")

    def run():
        figures = {"first": 1}
        with cases.keeping(figures):
            raise ValueError("wrong")

    outcome, _, figures = cases.carry_out(cases.Case("one", run))
    assert (outcome, figures) == ("FAILED", {"first": 1, "error": "ValueError: wrong"})
    assert "ValueError: wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "logprobs", "wrong"),
    [
        ([1, 2, 3], [-0.1, -0.2, -0.3], None),
        # as likely as the other: what follows is another text
        ([1, 5, 9], [-0.1, -0.2004, -2.0], None),
        ([1, 5, 3], [-0.1, -0.3, -0.3], "output 1: another token, 1.0e-01 apart"),
        ([1, 2, 3], [-0.1, -0.2, -0.4], "output 2: the same token, 1.0e-01 apart"),
        ([1, 5, 3], [-0.1, float("nan"), -0.3], "output 1: another token, nan apart"),
        ([5, 2, 3], [-0.1, -0.2, -0.3], "only 1 of 3 tokens before a tie"),
        ([1, 2], [-0.1, -0.2], "2 tokens"),
    ],
)
def test_other_tokens_are_forgiven_where_two_were_equally_likely(load, tokens, logprobs, wrong):
    agree = load("agreement").agree
    wanted = SimpleNamespace(tokens={1: {0: [1, 2, 3]}}, logprobs={1: {0: [-0.1, -0.2, -0.3]}})
    got = SimpleNamespace(tokens={1: {0: tokens}}, logprobs={1: {0: logprobs}})
    if wrong:
        with pytest.raises(AssertionError, match=wrong):
            agree(got, wanted, 1e-3)
    else:
        ties = int(tokens != [1, 2, 3])
        assert agree(got, wanted, 1e-3)["prompts_that_ended_in_a_tie"] == ties


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("row", "dropped"), [(None, 0), (5, 1), (5, 64), (2, 1)], ids=str)
def test_a_few_missing_keys_of_one_row_are_noticed(row, dropped, dtype, load, monkeypatch):
    kernel_cases = load("kernel_cases")
    attend = kernel_cases.decode_attention

    def forgetful(query, kv, scales, table, batch, **others):
        """The last keys of a row are not seen."""
        lens = list(batch.lens)
        if row is not None:
            lens[row] -= dropped
        seen = kernel_cases.make_decode_batch(table, range(len(lens)), lens, padding_slot=0)
        return attend(query, kv, scales, table, seen, **others)

    monkeypatch.setattr(kernel_cases, "decode_attention", forgetful)
    torch.manual_seed(0)
    given = (torch.device("cpu"), getattr(torch, dtype), (8, 2, 64), [1, 17, 128, 1000, 2048, 4000])
    with torch.inference_mode():
        if row is None:
            kernel_cases.attention(*given, decode=True, int8=False)
            return
        with pytest.raises(AssertionError, match="relative error"):
            kernel_cases.attention(*given, decode=True, int8=False)


def test_the_wheels_that_are_carried_along_need_nothing_else():
    script = (ROOT / "scripts" / "gpu_check" / "wheels.sh").read_text()
    carried = re.search(r"packages=\((.*?)\)", script, re.DOTALL)[1].split()
    locked = (ROOT / "requirements.lock").read_text()
    assert len(carried) > 10
    for package in carried:
        assert f"\n{package}==" in locked
        needed = map(Requirement, metadata.requires(package) or [])
        names = {r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})}
        assert {name.replace("_", "-").lower() for name in names} <= {*carried}, package


def test_requests_have_the_lengths_of_published_runs(load):
    module = load("arrivals")
    requests = module.make_requests(2000, rate=200.0, vocab_size=32000)
    prompts = [len(request.prompt_ids) for request in requests]
    outputs = [request.output_len for request in requests]
    assert min(prompts) >= 4
    assert min(outputs) >= 4
    assert max(prompts) <= 1024
    assert max(p + o for p, o in zip(prompts, outputs, strict=True)) <= 2048
    assert statistics.mean(prompts) == pytest.approx(225, rel=0.06)
    assert statistics.mean(outputs) == pytest.approx(195, rel=0.06)
    # 2000 arrivals at 200 per second
    assert requests[-1].due == pytest.approx(10, rel=0.1)
    assert requests == module.make_requests(2000, rate=200.0, vocab_size=32000)


def test_gaps_between_kernels(load):
    gaps = load("gaps").gaps_between([(150.0, 160.0), (0.0, 20.0), (10.0, 30.0), (35.0, 40.0)])
    assert gaps == {"longest_gap_us": 110.0, "gaps_over_100_us": 1, "idle_share": 0.7188}
    assert load("gaps").gaps_between([])["idle_share"] == 0.0


@pytest.mark.slow
def test_the_tuner_times_each_candidate_of_a_row():
    """At tiny shapes in the interpreter, which is chosen before a kernel is defined."""
    program = """
import torch, tune_attention
for result in tune_attention.run(torch.device("cpu"), tiny=True):
    print(result["key"].op, result["key"].kv_kind, len(result["timed"]))
"""
    folders = [str(ROOT / name) for name in ("kernels", "benchmarks/kernels")]
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = ["decode 16bit 2", "decode int8 2", "prefill 16bit 2", "prefill int8 2"]
    assert sorted(result.stdout.splitlines()) == rows


@pytest.mark.slow
def test_profile_of_a_step():
    command = [sys.executable, "benchmarks/engine/profile_step.py", "--steps", "2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n| ") >= 9
