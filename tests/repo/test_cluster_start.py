"""How the local cluster's start bears what fails for a moment, and what it says of what stays."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

CLUSTER = Path(__file__).parents[1] / "cluster"
# notes that it was called, and succeeds from the n-th call on
FAILS_AT_FIRST = """
import pathlib, sys
calls = pathlib.Path(sys.argv[1])
calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
sys.exit(0 if len(calls.read_text()) >= int(sys.argv[2]) else "the mirror is away")
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of tests/cluster; scripts/gpu_check has some of the same names."""
    monkeypatch.syspath_prepend(CLUSTER)
    names = [path.stem for path in CLUSTER.glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(others)


@pytest.fixture
def daemons(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With a log of a part named dns."""
    daemons = load("daemons")
    (tmp_path / "dns.log").write_text("starting\nno address left\n")
    monkeypatch.setattr(daemons, "LOGS", tmp_path)
    return daemons


@pytest.mark.parametrize(("succeeds_at", "calls"), [(1, 1), (3, 3), (9, 3)])
def test_a_download_is_tried_three_times(load, tmp_path, monkeypatch, succeeds_at, calls):
    shell, errors = load("shell"), load("errors")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    counter = tmp_path / "calls"
    command = [sys.executable, "-c", FAILS_AT_FIRST, counter, str(succeeds_at)]
    fails = pytest.raises(errors.ClusterError, match="the mirror is away")
    with fails if succeeds_at > calls else nullcontext():
        shell.run_over_network(command)
    assert len(counter.read_text()) == calls


def test_a_part_that_does_not_come_up_is_told_with_the_end_of_its_log(load, daemons, monkeypatch):
    monkeypatch.setattr(daemons, "is_running", lambda _: True)
    monkeypatch.setattr(daemons, "_PATIENCE_S", 1.0)
    with pytest.raises(load("errors").ClusterError) as told:
        daemons.wait(("dns",), lambda: False, "DNS answers")
    assert str(told.value).startswith("DNS answers: not so after 1 s\nthe end of ")
    assert str(told.value).endswith("starting\nno address left")


def test_a_part_that_has_ended_is_not_waited_for(load, daemons, monkeypatch):
    asked = []
    monkeypatch.setattr(daemons, "is_running", lambda _: len(asked) < 2)
    with pytest.raises(load("errors").ClusterError, match=r"(?s)dns has ended; .*no address left"):
        daemons.wait(("dns",), lambda: asked.append("dns"), "DNS answers")
    assert len(asked) == 2


@pytest.mark.parametrize("failures", [1, 2])
def test_a_start_that_fails_is_made_once_more_from_nothing(load, monkeypatch, failures):
    cli, errors, done = load("cli"), load("errors"), []

    def start() -> None:
        done.append("start")
        if done.count("start") <= failures:
            raise errors.ClusterError("the node is Ready: not so")

    monkeypatch.setattr(cli, "_locked", nullcontext)
    for module, name in ((cli, "prepare"), (cli.machine, "check_root"), (cli.claim, "take")):
        monkeypatch.setattr(module, name, lambda: None)
    monkeypatch.setattr(cli.certificates, "are_valid", lambda: False)
    monkeypatch.setattr(cli, "_end", lambda: done.append("end"))
    monkeypatch.setattr(cli, "_start", start)
    fails = pytest.raises(errors.ClusterError, match="the node is Ready")
    with fails if failures == 2 else nullcontext():
        cli.up()
    assert done == ["end", "start", "end", "start"]
