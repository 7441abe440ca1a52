"""The scheduler's rules one by one, over an engine that remembers what is in every slot."""

from __future__ import annotations

import pytest

from lightllm_server.router.admission import (
    ConservativeAdmission,
    EfficientAdmission,
    Occupancy,
    PastFutureAdmission,
)
from lightllm_server.router.step_plan import StepPlan
from scheduler_driver import SchedulerDriver

# too large for an eos to turn up by chance in the few tokens of a test
QUIET_VOCAB = 100_000
HOPEFUL = EfficientAdmission(expected_new_tokens=1)


def chunk_lens(plan: StepPlan | None) -> dict[int, int]:
    """Prefill tokens by row."""
    assert plan is not None
    return dict(zip(plan.chunk_rows.tolist(), plan.chunk_lens.tolist(), strict=True))


# ---------------------------------------------------------------- one request


def test_a_request_from_first_to_last() -> None:
    driver = SchedulerDriver(vocab_size=QUIET_VOCAB)
    request = driver.add([5, 6, 7], max_new_tokens=3)
    driver.drain()
    driver.check_drained()
    assert len(driver.outputs(request)) == 3
    ended = driver.ended[request]
    assert (ended.outcome, ended.cached_tokens, ended.started_ns) == ("finished", 0, 7)
    # prefill, two decodes; the last token is never an input
    assert [plan.num_tokens for plan in driver.plans] == [3, 1, 1]
    # so its KV is not in the cache either
    assert driver.scheduler.slots_cached == 3 + 2


def test_steps_are_planned_one_ahead_and_no_further() -> None:
    driver = SchedulerDriver(vocab_size=QUIET_VOCAB)
    driver.add([5], max_new_tokens=10)
    assert driver.plan() is not None
    assert driver.plan() is not None
    assert driver.plan() is None
    driver.commit()
    assert driver.plan() is not None


def test_a_known_end_is_not_planned_beyond() -> None:
    driver = SchedulerDriver(vocab_size=QUIET_VOCAB, max_len=5)
    driver.add([5], max_new_tokens=2)
    limited = driver.add([5, 6, 7], max_new_tokens=30)
    driver.drain()
    driver.check_drained()
    assert len(driver.outputs(limited)) == 2
    assert driver.tokens[limited, 0][-1].finish_reason == "length"
    assert driver.scheduler.overrun_tokens_total == 0


def test_an_eos_is_one_token_too_late_and_what_comes_after_is_dropped() -> None:
    for seed in range(100):
        driver = SchedulerDriver()
        request = driver.add([5, 6], max_new_tokens=20, seed=seed)
        length = len(driver.expected(request))
        if 2 < length < 20:
            break
    driver.drain()
    driver.check_drained()
    assert driver.tokens[request, 0][-1].is_stop_token
    assert driver.scheduler.overrun_tokens_total == 1
    # the eos was an input of the overrun step, but does not count as computed
    assert driver.scheduler.slots_cached == 2 + length - 1


# ---------------------------------------------------------------- bad and odd messages


def test_a_bad_request_ends_at_once_and_only_it() -> None:
    driver = SchedulerDriver()
    good = driver.add([5, 6], max_new_tokens=4)
    bad = driver.add([5, 99], max_new_tokens=4)
    assert driver.ended[bad].outcome == "failed"
    assert "prompt_ids" in driver.ended[bad].error
    driver.drain()
    driver.check_drained()
    assert driver.ended[good].outcome == "finished"
    assert driver.scheduler.ended_unstarted_total == 1


def test_an_id_in_use_is_ignored() -> None:
    driver = SchedulerDriver()
    request = driver.add([5, 6], max_new_tokens=4)
    driver.scheduler.add(driver.requests[request])
    assert driver.scheduler.take_events() is None
    driver.drain()
    driver.check_drained()


def test_aborts_free_at_once_waiting_or_running_and_are_idempotent() -> None:
    driver = SchedulerDriver(max_rows=1)
    running = driver.add([5] * 6, max_new_tokens=20)
    waiting = driver.add([6] * 6, max_new_tokens=20)
    behind = driver.add([7] * 6, max_new_tokens=3)
    driver.turn()
    assert (driver.scheduler.num_running, driver.scheduler.num_waiting) == (1, 2)
    driver.abort(waiting)
    assert driver.scheduler.num_waiting == 1
    assert driver.ended[waiting].started_ns == 0
    driver.abort(running)
    assert driver.scheduler.slots_used == 0
    driver.abort(running)
    driver.abort(12345)
    assert driver.scheduler.unknown_aborts_total == 2
    driver.drain()
    driver.check_drained()
    assert driver.ended[behind].outcome == "finished"


def test_a_stopped_choice_gets_nothing_more_and_the_last_one_ends_the_request() -> None:
    driver = SchedulerDriver(vocab_size=QUIET_VOCAB)
    request = driver.add([5, 6], max_new_tokens=20, n=2)
    while len(driver.outputs(request)) < 3:
        driver.turn()
    driver.stop(request, 0)
    driver.stop(request, 0)
    assert request not in driver.ended
    assert driver.scheduler.num_running_rows == 1
    driver.turn()
    driver.stop(request, 1)
    assert driver.ended[request].outcome == "finished"
    assert driver.scheduler.slots_used == 0
    driver.drain()
    driver.check_drained()
    assert len(driver.outputs(request, 0)) == 3


def test_failing_requests_by_id() -> None:
    driver = SchedulerDriver()
    request = driver.add([5, 6], max_new_tokens=20, ignore_eos=True)
    driver.turn()
    driver.scheduler.fail([request, 999], "the engine is gone")
    events = driver.scheduler.take_events()
    assert events is not None
    assert [(e.outcome, e.error) for e in events.ended] == [("failed", "the engine is gone")]


# ---------------------------------------------------------------- the token budget


def test_decoding_rows_come_first_and_prompts_share_what_is_left() -> None:
    driver = SchedulerDriver(num_slots=300, max_len=200, max_batch_tokens=21)
    driver.add([5], max_new_tokens=30, ignore_eos=True)
    driver.plan()
    driver.add([6] * 100, max_new_tokens=4, ignore_eos=True)
    driver.add([7] * 6, max_new_tokens=4, ignore_eos=True)
    plan = driver.plan()
    assert plan is not None
    assert len(plan.decode_rows) == 1
    assert plan.num_tokens == 21
    # the short prompt is through in one step, the long one has what is left of 20
    assert sorted(chunk_lens(plan).values()) == [6, 14]


def test_a_long_prompt_has_the_whole_budget_while_nobody_else_wants_it() -> None:
    driver = SchedulerDriver(num_slots=300, max_len=200, max_batch_tokens=16)
    driver.add([5] * 40, max_new_tokens=2)
    driver.drain()
    assert [plan.num_tokens for plan in driver.plans[:3]] == [16, 16, 8]


def test_short_prompts_are_served_one_after_the_other_not_all_at_the_same_slow_pace() -> None:
    driver = SchedulerDriver(num_slots=300, max_len=200, max_batch_tokens=16, max_rows=64)
    for first in range(32):
        driver.add([2 + first % 8, 3 + first // 8], max_new_tokens=2, ignore_eos=True)
    plan = driver.plan()
    assert plan is not None
    assert plan.chunk_lens.tolist() == [2] * 8
    assert len(plan.sample_rows) == 8
    driver.drain()
    driver.check_drained()


def test_decode_rows_beyond_the_budget_all_go() -> None:
    driver = SchedulerDriver(max_batch_tokens=4, vocab_size=QUIET_VOCAB)
    driver.add([5, 6], max_new_tokens=6, n=6)
    driver.turn()
    plan = driver.plan()
    assert plan is not None
    assert len(plan.decode_rows) == 6
    driver.drain()
    driver.check_drained()


# ---------------------------------------------------------------- the prefix cache


def test_an_equal_prompt_is_found_but_for_its_last_token() -> None:
    driver = SchedulerDriver(vocab_size=QUIET_VOCAB)
    driver.add([5, 6, 7, 8], max_new_tokens=2)
    driver.plan()
    # in flight, and found already
    again = driver.add([5, 6, 7, 8], max_new_tokens=2, seed=0)
    plan = driver.plan()
    assert list(chunk_lens(plan).values()) == [1]
    assert plan is not None
    assert len(plan.starts[0].prefix_slots) == 3
    driver.drain()
    driver.check_drained()
    assert driver.ended[again].cached_tokens == 3
    assert driver.outputs(again) == driver.outputs(0)
    scheduler = driver.scheduler
    assert scheduler.prefix_query_tokens_total == 8
    assert scheduler.prefix_hit_tokens_total == 3


def test_the_answer_is_found_when_the_dialogue_goes_on() -> None:
    driver = SchedulerDriver(vocab_size=QUIET_VOCAB)
    first = driver.add([5, 6, 7], max_new_tokens=4)
    driver.drain()
    dialogue = [5, 6, 7, *driver.outputs(first), 8]
    second = driver.add(dialogue, max_new_tokens=2)
    driver.drain()
    driver.check_drained()
    # all but the last answer token, which was never computed, and the new one
    assert driver.ended[second].cached_tokens == len(dialogue) - 2


def test_salts_and_prompt_logprobs_keep_from_reading_the_cache() -> None:
    driver = SchedulerDriver()
    prompt = [5, 6, 7, 8]
    driver.add(prompt, max_new_tokens=2)
    driver.drain()
    salted = driver.add(prompt, max_new_tokens=2, cache_salt="other")
    scored = driver.add(prompt, max_new_tokens=2, prompt_logprobs=1)
    driver.drain()
    driver.check_drained()
    assert driver.ended[salted].cached_tokens == 0
    assert driver.ended[scored].cached_tokens == 0
    assert driver.opened[scored].prompt_logprobs is not None


def test_equal_prompts_in_one_step_both_compute_and_one_copy_stays() -> None:
    driver = SchedulerDriver(vocab_size=QUIET_VOCAB)
    for _ in range(2):
        driver.add([5, 6, 7, 8], max_new_tokens=1)
    plan = driver.plan()
    assert list(chunk_lens(plan).values()) == [4, 4]
    driver.drain()
    driver.check_drained()
    assert driver.scheduler.slots_cached == 4


def test_without_a_cache_nothing_stays() -> None:
    driver = SchedulerDriver(caching=False)
    for _ in range(3):
        driver.add([5, 6, 7, 8], max_new_tokens=3, n=2)
    driver.drain()
    driver.check_drained()
    assert driver.scheduler.slots_cached == 0
    assert driver.scheduler.prefix_hit_tokens_total == 0


def test_cached_prefixes_give_way_to_requests() -> None:
    driver = SchedulerDriver(num_slots=40, max_len=40)
    for first in range(6):
        driver.add([2 + first] * 20, max_new_tokens=5, ignore_eos=True)
    driver.drain()
    driver.check_drained()
    assert driver.scheduler.preempted_total == 0
    assert driver.scheduler.slots_cached == 40


# ---------------------------------------------------------------- n samples


@pytest.mark.parametrize("caching", [True, False])
def test_samples_share_one_prefill(caching: bool) -> None:
    driver = SchedulerDriver(caching=caching, vocab_size=QUIET_VOCAB)
    request = driver.add([5, 6, 7, 8], max_new_tokens=3, n=4, temperature=1.0)
    plan = driver.plan()
    assert plan is not None
    assert plan.num_tokens == 4
    assert sorted(start.choice for start in plan.starts) == [0, 1, 2, 3]
    assert [copy.length for copy in plan.copies] == [4, 4, 4]
    assert plan.sample_token_index.tolist() == [3, 3, 3, 3]
    driver.drain()
    driver.check_drained()
    # 4 of the prompt, then 2 inputs for each of 4 choices
    assert sum(plan.num_tokens for plan in driver.plans) == 4 + 2 * 4
    assert len({tuple(driver.outputs(request, choice)) for choice in range(4)}) == 4


def test_all_rows_of_a_request_are_admitted_or_none() -> None:
    driver = SchedulerDriver(max_rows=4, num_slots=200, vocab_size=QUIET_VOCAB)
    driver.add([5, 6], max_new_tokens=5, n=3)
    pair = driver.add([6, 7], max_new_tokens=5, n=2)
    driver.add([7, 8], max_new_tokens=5)
    driver.plan()
    # the third would fit, but nobody overtakes
    assert (driver.scheduler.num_running, driver.scheduler.num_waiting) == (1, 2)
    driver.drain()
    driver.check_drained()
    assert driver.ended[pair].outcome == "finished"


# ---------------------------------------------------------------- running out of slots


def crowd(driver: SchedulerDriver, **options: object) -> None:
    """Requests that together want far more than there is, as a short estimate does not see."""
    for first in range(6):
        driver.add([2 + first] * 6, max_new_tokens=25, **options)


@pytest.mark.parametrize("steps_ahead", [0, 1, 2])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("n", [1, 2])
def test_preempted_requests_go_on_as_if_nothing_had_happened(
    n: int, caching: bool, steps_ahead: int
) -> None:
    driver = SchedulerDriver(
        HOPEFUL, num_slots=60, caching=caching, vocab_size=QUIET_VOCAB, steps_ahead=steps_ahead
    )
    crowd(driver, n=n)
    driver.drain()
    driver.check_drained()
    scheduler = driver.scheduler
    assert scheduler.preempted_total > 0
    assert scheduler.recomputed_tokens_total > 0
    assert all(ended.outcome == "finished" for ended in driver.ended.values())
    # admitted once each; prompts counted once
    assert scheduler.admitted_total == 6
    assert scheduler.prompt_tokens_total == 36


def test_a_preempted_request_comes_back_only_once_its_tokens_in_flight_are_known() -> None:
    preempted = 0
    for num_slots in range(20, 30):
        driver = SchedulerDriver(
            HOPEFUL, num_slots=num_slots, steps_ahead=2, vocab_size=QUIET_VOCAB
        )
        # the first two end soon, while steps of the preempted third are still in flight
        for first, max_new_tokens in ((5, 2), (6, 3), (7, 14)):
            driver.add([first] * 6, max_new_tokens=max_new_tokens)
        driver.drain()
        driver.check_drained()
        preempted += driver.scheduler.preempted_total
    assert preempted


def test_preemption_takes_the_youngest_and_keeps_the_order() -> None:
    driver = SchedulerDriver(HOPEFUL, num_slots=60, vocab_size=QUIET_VOCAB)
    crowd(driver)
    while not driver.scheduler.preempted_total:
        driver.turn()
    # whoever runs came before whoever waits
    scheduler = driver.scheduler
    running = {request.request_id for request in scheduler._running}
    waiting = [request.request_id for request in scheduler._queue]
    assert max(running) < min(waiting)
    assert waiting == sorted(waiting)
    driver.drain()
    assert list(driver.ended) == sorted(driver.ended)


def test_what_a_preempted_request_had_computed_is_still_in_the_cache_if_there_is_room() -> None:
    recomputed = {}
    for caching in (True, False):
        driver = SchedulerDriver(HOPEFUL, num_slots=60, caching=caching, vocab_size=QUIET_VOCAB)
        crowd(driver)
        driver.drain()
        recomputed[caching] = driver.scheduler.recomputed_tokens_total
    assert recomputed[True] < recomputed[False]


def test_conservative_never_preempts_where_efficient_does() -> None:
    preempted = {}
    for policy in (ConservativeAdmission(), HOPEFUL):
        driver = SchedulerDriver(policy, num_slots=60, vocab_size=QUIET_VOCAB)
        crowd(driver)
        driver.drain()
        driver.check_drained()
        preempted[type(policy)] = driver.scheduler.preempted_total
    assert preempted[ConservativeAdmission] == 0 < preempted[EfficientAdmission]


def test_one_request_may_fill_the_whole_cache() -> None:
    for policy in (ConservativeAdmission(), EfficientAdmission()):
        driver = SchedulerDriver(policy, num_slots=30, max_len=40, vocab_size=QUIET_VOCAB)
        first = driver.add([5] * 10, max_new_tokens=20, ignore_eos=True)
        second = driver.add([6] * 6, max_new_tokens=8, n=3, ignore_eos=True)
        driver.drain()
        driver.check_drained()
        assert driver.ended[first].outcome == driver.ended[second].outcome == "finished"


def test_long_prompts_that_fit_only_one_by_one_all_end() -> None:
    driver = SchedulerDriver(HOPEFUL, num_slots=40, max_batch_tokens=8, vocab_size=QUIET_VOCAB)
    for first in range(5):
        driver.add([2 + first] * 30, max_new_tokens=10)
    driver.drain()
    driver.check_drained()
    assert all(ended.outcome == "finished" for ended in driver.ended.values())


def test_an_aborted_preempted_request_leaves_the_queue() -> None:
    driver = SchedulerDriver(HOPEFUL, num_slots=60, vocab_size=QUIET_VOCAB)
    crowd(driver)
    while not driver.scheduler.num_preempted_waiting:
        driver.turn()
    victim = next(iter(driver.scheduler._queue)).request_id
    driver.abort(victim)
    assert driver.scheduler.num_preempted_waiting == 0
    driver.drain()
    driver.check_drained()


# ---------------------------------------------------------------- failed steps


def test_a_failed_steps_requests_run_again_one_by_one() -> None:
    driver = SchedulerDriver(vocab_size=QUIET_VOCAB)
    for first in range(3):
        driver.add([5 + first] * 4, max_new_tokens=9, n=1 + first % 2)
    for _ in range(5):
        driver.turn()
    driver.plan()
    before = len(driver.plans)
    driver.abandon()
    assert driver.ended == {}
    while len(driver.plans) < before + 3:
        driver.turn()
    for plan in driver.plans[before:]:
        rows = {*plan.sample_rows.tolist(), *plan.chunk_rows.tolist()}
        assert len({driver.engine.rows[row].start.sampling.seed for row in rows}) == 1
    driver.drain()
    driver.check_drained()
    assert all(ended.outcome == "finished" for ended in driver.ended.values())
    # what was certain of it was in the cache still
    assert driver.scheduler.recomputed_tokens_total < 3 * 4


def test_the_culprit_ends_as_failed_and_the_others_do_not() -> None:
    driver = SchedulerDriver(vocab_size=QUIET_VOCAB)
    for first in range(4):
        driver.add([5 + first] * 4, max_new_tokens=6)
    culprit = 2
    for _ in range(1000):
        driver.plan()
        oldest = driver.in_flight[0][0] if driver.in_flight else None
        if oldest is None:
            break
        in_step = {
            driver.engine.rows[row].start.sampling.seed for row in oldest.sample_rows.tolist()
        }
        if culprit in in_step:
            driver.abandon()
        else:
            driver.commit()
        driver.scheduler.check_invariants()
    driver.check_drained()
    outcomes = {request: ended.outcome for request, ended in driver.ended.items()}
    assert outcomes == {0: "finished", 1: "finished", 2: "failed", 3: "finished"}


def test_what_a_failed_step_was_to_write_is_nobodys_prefix() -> None:
    driver = SchedulerDriver(vocab_size=QUIET_VOCAB)
    driver.add([5] * 8, max_new_tokens=4)
    driver.plan()
    # finds the prompt in flight
    follower = driver.add([5] * 8, max_new_tokens=4, seed=0)
    driver.plan()
    driver.abandon()
    assert driver.scheduler.slots_cached == 0
    assert driver.ended[0].outcome == "failed"
    driver.drain()
    driver.check_drained()
    assert driver.ended[follower].outcome == "finished"


def test_what_is_in_flight_of_an_aborted_request_is_not_cached() -> None:
    driver = SchedulerDriver(vocab_size=QUIET_VOCAB)
    driver.add([5] * 4, max_new_tokens=4)
    # the same beginning in the same step: this one keeps its tokens to itself
    aborted = driver.add([5, 5, 5, 5, 6, 6, 6], max_new_tokens=4)
    driver.plan()
    driver.abort(aborted)
    assert driver.scheduler.slots_cached == 0
    driver.abandon()
    assert driver.scheduler.slots_cached == 0
    driver.drain()
    driver.check_drained()


# ---------------------------------------------------------------- gauges


def test_gauges_and_totals() -> None:
    driver = SchedulerDriver(max_rows=2, vocab_size=QUIET_VOCAB)
    for _ in range(3):
        driver.add([5, 6, 7], max_new_tokens=4)
    scheduler = driver.scheduler
    assert (scheduler.num_waiting, scheduler.queued_tokens) == (3, 9)
    driver.plan()
    assert (scheduler.num_running, scheduler.num_running_rows) == (2, 2)
    assert (scheduler.num_waiting, scheduler.queued_tokens) == (1, 3)
    assert (scheduler.slots_used, scheduler.slots_total) == (6, 64)
    driver.drain()
    driver.check_drained()
    assert scheduler.accepted_total == scheduler.admitted_total == scheduler.finished_total == 3
    assert scheduler.admitted_tokens_total == scheduler.prompt_tokens_total == 9
    assert scheduler.generated_tokens_total == 12


# ---------------------------------------------------------------- the history of output lengths


class RecordingAdmission(PastFutureAdmission):
    def __init__(self) -> None:
        super().__init__()
        self.observed: list[int] = []

    def observe(self, out_len: int) -> None:
        self.observed.append(out_len)
        super().observe(out_len)


def test_only_outputs_that_ended_by_themselves_are_remembered() -> None:
    policy = RecordingAdmission()
    driver = SchedulerDriver(policy, num_slots=400)
    natural = [driver.add([5, 6], max_new_tokens=38, seed=seed, n=2) for seed in range(5)]
    by_id = driver.add([5, 7], max_new_tokens=30, ignore_eos=True, stop_token_ids=(3, 4, 5, 6))
    driver.drain()
    lengths = [
        len(driver.outputs(request, choice))
        for request in natural
        for choice in (0, 1)
        if driver.tokens[request, choice][-1].is_stop_token
    ]
    assert len(lengths) > 5
    assert sorted(policy.observed) == sorted([*lengths, len(driver.outputs(by_id))])

    policy.observed.clear()
    capped = driver.add([5, 6], max_new_tokens=3, ignore_eos=True)
    aborted = driver.add([5, 6], max_new_tokens=30, ignore_eos=True)
    stopped = driver.add([5, 6], max_new_tokens=30, ignore_eos=True)
    for _ in range(6):
        driver.turn()
    count = len(driver.outputs(stopped))
    assert count > 0
    driver.abort(aborted)
    driver.stop(stopped, 0)
    driver.drain()
    driver.check_drained()
    assert driver.tokens[capped, 0][-1].finish_reason == "length"
    # a stop string is a natural end, too
    assert policy.observed == [count]


@pytest.mark.parametrize("caching", [True, False])
def test_a_history_that_always_promises_too_little_is_no_livelock(caching: bool) -> None:
    def preemptions(max_preemptions: int) -> int:
        policy = PastFutureAdmission(max_preemptions=max_preemptions)
        # whatever an output has reached, most of the longer ones end a token or two later
        for length in range(1, 39):
            for _ in range(max(1, 500 >> length)):
                policy.observe(length)
        driver = SchedulerDriver(
            policy, num_slots=60, max_rows=8, caching=caching, vocab_size=QUIET_VOCAB
        )
        # but these take all that they may
        for i in range(12):
            driver.add([i + 2, i + 3], max_new_tokens=36)
        driver.drain(max_turns=3000)
        driver.check_drained()
        return driver.scheduler.preempted_total

    counted, forgotten = preemptions(2), preemptions(1_000_000)
    assert 0 < counted < forgotten


class CountingAdmission(ConservativeAdmission):
    """questions: how many rows each was about."""

    def __init__(self) -> None:
        self.questions: list[int] = []

    def peak(self, rows: Occupancy) -> int:
        self.questions.append(len(rows.held))
        return super().peak(rows)


def test_the_policy_is_asked_once_for_all_until_it_refuses() -> None:
    policy = CountingAdmission()
    driver = SchedulerDriver(
        policy, num_slots=200, max_rows=40, max_batch_tokens=200, caching=False
    )
    for _ in range(12):
        driver.add([2, 3, 4], max_new_tokens=7)
    driver.turn()
    assert policy.questions == [12]
    policy.questions.clear()
    for _ in range(12):
        driver.add([2, 3, 4], max_new_tokens=7)
    driver.turn()
    # those that run need 9 slots each, others 10: 9 of them fit
    assert policy.questions[0] == 24
    assert driver.scheduler.num_running_rows == 21
    assert len(policy.questions) <= 5
    driver.drain()
    driver.check_drained()
