"""The serving benchmark's own rules: fair to the peers, void without them, ratios of medians."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SERVING = Path(__file__).parents[2] / "benchmarks" / "serving"


@pytest.fixture
def serving(monkeypatch):
    """Its modules import each other by their bare names, as a script's do."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SERVING))
    yield SERVING
    for name in set(sys.modules) - before:
        if str(SERVING) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def result(measure, name, speeds, *, ours=False, quantised=False):
    rounds = [measure.Round(seconds=1.0, output_tokens=speed, ttft=[], tpot=[]) for speed in speeds]
    return measure.EngineResult(
        name=name,
        ours=ours,
        quantised=quantised,
        command="",
        version="",
        dtype="",
        threads=2,
        rounds=rounds,
    )


def test_ratios_are_of_medians_and_against_the_best_peer(serving):
    import measure

    results = [
        result(measure, "ours", [100, 300, 900], ours=True),
        result(measure, "ours int8", [1, 600, 601], ours=True, quantised=True),
        result(measure, "slow peer", [50, 50, 50]),
        result(measure, "peer", [150, 150, 9000]),
        result(measure, "quantised peer", [200, 200, 1], quantised=True),
    ]
    assert measure.ratios(results) == {"ratio_unquantised": 2.0, "ratio_to_best_peer": 3.0}


def test_the_requests_are_the_promised_ones(serving):
    import workload

    requests = workload.make_requests(32000)
    assert requests == workload.make_requests(32000)
    assert len(requests) == 64
    lengths = [len(request.prompt_ids) for request in requests]
    outputs = [request.output_len for request in requests]
    assert 32 <= min(lengths) < 50
    assert 230 < max(lengths) <= 256
    assert 32 <= min(outputs) < 45
    assert 115 < max(outputs) <= 128


def test_peers_get_batches_of_similar_length(serving):
    import workload

    batches = workload.by_length(workload.make_requests(32000))
    assert [len(batch) for batch in batches] == [16] * 4
    lengths = [len(request.prompt_ids) for batch in batches for request in batch]
    assert lengths == sorted(lengths)


def test_no_prompt_is_known_from_an_earlier_round(serving, monkeypatch):
    import contextlib

    import run

    class Recorded(contextlib.nullcontext):
        command = ""

        def __init__(self, model_dir, *options, threads):
            super().__init__(self)
            self.options = options

        def dtype(self):
            return "float32"

    monkeypatch.setattr(run, "Server", Recorded)
    with contextlib.ExitStack() as stack:
        ours, _ = run.start_ours(stack, Path("model"), 2, quantised=True)
    options = " ".join(ours.server.options)
    assert "--prefix-cache off" in options
    assert "--weight-dtype int8" in options


@pytest.mark.parametrize("missing", ["ctranslate2", "another"])
def test_a_missing_peer_is_a_failure(serving, monkeypatch, capsys, missing):
    import peers
    import run

    if missing == "ctranslate2":
        monkeypatch.setitem(sys.modules, "ctranslate2", None)
    else:
        # its process ends where a library that cannot be imported would end it
        spec = peers.PeerSpec(engine="another", dtype="float32", model_dir=Path("/nowhere"))
        monkeypatch.setattr(run, "candidates", lambda model_dir: [spec])
    monkeypatch.setattr(peers, "convert_for_ctranslate2", lambda model_dir: model_dir)
    monkeypatch.setattr(run, "ensure_model", lambda: Path("/nowhere"))
    for name in ("time_to_ready", "null_model", "demo_logits"):
        monkeypatch.setattr(run.extras, name, lambda *_: {})
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert run.main() == 1
    assert "benchmark void: " in capsys.readouterr().err
