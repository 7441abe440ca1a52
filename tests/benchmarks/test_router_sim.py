"""The router's simulation at its quick size: what must hold for every policy under each load."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

# half of them: the others are variants
LOADS = ("sharegpt", "sharegpt-forced", "mixed", "switch")
ROUTER_SIM = Path(__file__).parents[2] / "benchmarks" / "router_sim"


@pytest.fixture(scope="module")
def modules():
    """Its modules import each other by their bare names, as a script's do."""
    before, path = set(sys.modules), sys.path.copy()
    sys.path.insert(0, str(ROUTER_SIM))
    import compare_seeds
    import loads
    import policies
    import run
    import simulation
    import summary

    imported = (compare_seeds, loads, policies, run, simulation, summary)
    yield {module.__name__: module for module in imported}
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(ROUTER_SIM.parent) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def runs(modules):
    """(load, policy) → its run."""
    run = modules["run"]
    return {
        (load.name, each.policy): each
        for load in map(run.quick, run.LOADS)
        if load.name in LOADS
        for each in run.simulate(load)
    }


def test_every_request_ends_once_with_all_its_tokens(runs):
    for case, run in runs.items():
        assert run.outcome.ends == [["finished"]] * len(run.requests), case
        assert np.array_equal(run.outcome.generated, run.requests.output_lens), case
        assert np.isfinite(run.outcome.first).all(), case
        assert (run.outcome.first > run.requests.arrivals).all(), case


def test_no_run_takes_more_slots_rows_or_tokens_than_there_are(runs):
    for case, run in runs.items():
        assert run.outcome.max_slots_used <= run.load.device.slots, case
        assert run.outcome.max_rows <= 1000, case
        assert run.outcome.busiest_plan <= 8192, case


def test_the_cautious_never_preempt(runs):
    for (load, policy), run in runs.items():
        if policy == "conservative":
            assert (run.outcome.preemptions, run.outcome.recomputed_tokens) == (0, 0), load


def test_the_quick_size_is_under_pressure(runs):
    """Else nothing above would mean much."""
    for policy in ("watermark", "past-future"):
        preempted = [
            load for (load, name), r in runs.items() if name == policy and r.outcome.preemptions
        ]
        assert len(preempted) >= 3, policy


def test_past_future_serves_no_fewer_in_time_than_a_watermark(runs):
    for (load, policy), run in runs.items():
        if policy == "past-future":
            beside = runs[load, "watermark"].summary
            assert run.summary.within_targets >= beside.within_targets, load


def test_a_run_is_repeatable_and_the_books_agree(modules, runs):
    run = modules["run"]
    load = run.quick(run.LOADS[0])
    (again,) = run.simulate(load, policies=["past-future"], check=True)
    first, second = runs[load.name, "past-future"].outcome, again.outcome
    assert np.array_equal(first.last, second.last)
    assert first.preemptions == second.preemptions


def test_lengths_are_those_that_lightllms_filter_leaves(modules):
    load = modules["loads"].LOADS[0]
    requests = load.requests(20_000, 10.0, seed=5)
    prompts, outputs = requests.prompt_lens, requests.output_lens
    assert prompts.min() >= 4
    assert outputs.min() >= 4
    assert prompts.max() <= 1024
    assert (prompts + outputs).max() <= 2048
    assert prompts.mean() == pytest.approx(225, rel=0.03)
    assert outputs.mean() == pytest.approx(195, rel=0.03)
    assert np.all(np.diff(requests.arrivals) >= 0)
    assert (requests.output_lens <= requests.limits).all()


def test_a_step_costs_its_weights_or_its_tokens_and_the_cache_it_reads(modules):
    import device

    from lightllm_server.router.step_plan import StepPlan

    def plan(chunks=(), decodes=()):
        """chunks: (start, length); decodes: positions."""
        ints = lambda values: np.array(list(values), dtype=np.int32)  # noqa: E731
        empty = ints([])
        return StepPlan(
            step=0,
            token_ids=empty,
            chunk_rows=empty,
            chunk_starts=ints(start for start, _ in chunks),
            chunk_lens=ints(length for _, length in chunks),
            decode_rows=empty,
            decode_positions=ints(decodes),
            slots=ints(range(sum(length for _, length in chunks) + len(decodes))),
            sample_token_index=empty,
            sample_rows=empty,
            sample_positions=empty,
            sample_out_lens=empty,
            prompt_logprob_chunks=empty,
        )

    gpu = device.LLAMA_7B
    floor = gpu.overhead_s + gpu.weight_bytes / gpu.bandwidth
    assert gpu.step_s(plan(decodes=[0])) == pytest.approx(floor)
    full = gpu.step_s(plan(decodes=[500] * 200))
    assert full - floor == pytest.approx(100_000 * gpu.kv_bytes / gpu.bandwidth)
    # a long prompt is bound by the products, quadratic ones included
    whole = gpu.step_s(plan(chunks=[(0, 8192)]))
    assert whole > 2 * gpu.parameters * 8192 / gpu.flops
    halves = gpu.step_s(plan(chunks=[(0, 4096)])) + gpu.step_s(plan(chunks=[(4096, 4096)]))
    read_twice = 4096 * gpu.kv_bytes / gpu.bandwidth
    assert halves == pytest.approx(whole + gpu.overhead_s + read_twice)


def test_the_plot_shows_each_load_beside_the_oracle(modules, runs):
    run = modules["run"]
    text = run.plot(list(runs.values()))
    assert text.startswith("<svg")
    assert all(f">{name}, " in text for name in LOADS)
    assert text.count("<rect") == 1 + 5 + len(runs)


def test_a_difference_over_seeds_comes_with_its_error(modules):
    compare = modules["compare_seeds"]
    assert compare.ahead(3.0, 2.0) == pytest.approx(50)
    assert compare.mean_and_error([1.0, 2.0, 3.0]) == "+2.00 ± 0.58"
    assert compare.mean_and_error([-0.5]) == "-0.50"
