"""The router process: the scheduler's loop around the model, a plain loop on the main thread.

Each turn: read what api and detok sent, plan and launch one step ahead, wait for the oldest step
in flight, commit it, send its tokens. ZeroMQ is drained without blocking between steps; with
nothing to do the loop sleeps on the sockets.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path

import zmq

from lightllm_server import channels
from lightllm_server.config import ServerConfig
from lightllm_server.engine.build import InFlightStep, Runner, build_runner
from lightllm_server.engine_info import EngineInfo, write_engine_info
from lightllm_server.errors import EngineError
from lightllm_server.messages import (
    Abort,
    ApiToRouter,
    Codec,
    DetokToRouter,
    Generate,
    RouterToDetok,
    TokenBatch,
)
from lightllm_server.router import admission, garbage_collector
from lightllm_server.router.prefix_cache import PrefixCache
from lightllm_server.router.scheduler import Scheduler, SchedulerConfig
from lightllm_server.router.step_plan import StepPlan
from lightllm_server.status_page import Field, State, StatusPage, StatusRow

__all__ = ["RouterLoop", "run"]

logger = logging.getLogger(__name__)

# a layer may be slow on a busy CPU, but a step that takes longer than this is lost
_STEP_TIMEOUT_S = 600.0
_IDLE_POLL_MS = 500
_PEAK_PERIOD_S = 0.1
_MAX_FAILED_STEPS = 20
_FAILED_STEPS_WINDOW_S = 60.0


class RouterLoop:
    """Joins scheduler, runner and sockets; owns the steps in flight, in launch order."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        row: StatusRow,
        *,
        from_api: channels.Receiver[ApiToRouter],
        from_detok: channels.Receiver[DetokToRouter],
        to_detok: channels.Sender[RouterToDetok],
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._row = row
        self._from_api = from_api
        self._from_detok = from_detok
        self._to_detok = to_detok
        self._in_flight: deque[tuple[StepPlan, InFlightStep]] = deque()
        self._failures: deque[float] = deque(maxlen=_MAX_FAILED_STEPS)
        self._peak_due = 0.0
        self._steps_ahead = scheduler.config.steps_ahead

    def run_forever(self) -> None:
        while True:
            self.turn()

    def turn(self) -> None:
        """One turn of the loop; blocks for a step, or up to half a second for a message."""
        self._receive()
        launched = self._launch()
        events = self._scheduler.take_events()
        # before the wait, so that the page is true during a long step
        self._publish()
        if events:
            self._send(events)
        if self._in_flight and (not launched or len(self._in_flight) > self._steps_ahead):
            self._commit_oldest()
        elif not self._in_flight:
            channels.wait_any(self._from_api, self._from_detok, timeout_ms=_IDLE_POLL_MS)

    def _receive(self) -> None:
        for message in self._from_api.receive_all():
            match message:
                case Generate():
                    self._scheduler.add(message)
                case Abort(request_id=request_id):
                    self._scheduler.abort(request_id)
        for stopped in self._from_detok.receive_all():
            self._scheduler.stop_choice(stopped.request_id, stopped.choice)

    def _launch(self) -> bool:
        if len(self._in_flight) > self._steps_ahead:
            return False
        began = time.monotonic_ns()
        plan = self._scheduler.plan()
        self._row.add(Field.PLAN_TIME_NS, time.monotonic_ns() - began)
        if plan is None:
            return False
        self._in_flight.append((plan, self._runner.launch(plan)))
        return True

    def _commit_oldest(self) -> None:
        began = time.monotonic_ns()
        plan, step = self._in_flight[0]
        garbage_collector.walk_new_objects()
        try:
            result = step.wait(_STEP_TIMEOUT_S)
        except EngineError:
            logger.exception("step %d failed; its requests run again one by one", plan.step)
            self._recover()
            return
        self._in_flight.popleft()
        batch = self._scheduler.commit(plan, result)
        self._row.tick()
        self._row.add(Field.STEPS)
        self._row.add(Field.STEP_TIME_NS, time.monotonic_ns() - began)
        # before anybody hears of it
        self._publish()
        self._send(batch)

    def _recover(self) -> None:
        """Drop the failed step and those launched after it; their requests are recomputed alone.

        Raises EngineError when steps keep failing: the fault is then ours, not one request's.
        """
        now = time.monotonic()
        self._failures.append(now)
        recent = now - self._failures[0] < _FAILED_STEPS_WINDOW_S
        if len(self._failures) == _MAX_FAILED_STEPS and recent:
            raise EngineError(f"{_MAX_FAILED_STEPS} steps failed within {_FAILED_STEPS_WINDOW_S} s")
        plans = [plan for plan, _ in self._in_flight]
        for _, step in list(self._in_flight)[1:]:
            try:
                step.wait(_STEP_TIMEOUT_S)
            except EngineError:
                logger.info("a step launched after the failed one failed too")
        self._in_flight.clear()
        self._scheduler.abandon(plans)

    def _send(self, batch: TokenBatch) -> None:
        if batch.opened or batch.tokens or batch.ended:
            self._to_detok.send(batch)

    def _publish(self) -> None:
        """Copy the scheduler's gauges and counters to the status page."""
        row, scheduler = self._row, self._scheduler
        now = time.monotonic()
        if now >= self._peak_due:
            row[Field.SLOTS_PEAK] = scheduler.foresee_peak()
            self._peak_due = now + _PEAK_PERIOD_S
        row[Field.WORK] = scheduler.num_waiting + scheduler.num_running
        row[Field.RUNNING] = scheduler.num_running
        row[Field.RUNNING_ROWS] = scheduler.num_running_rows
        row[Field.PREEMPTED_WAITING] = scheduler.num_preempted_waiting
        row[Field.SLOTS_USED] = scheduler.slots_used
        row[Field.SLOTS_CACHED] = scheduler.slots_cached
        row[Field.STARTED] = scheduler.admitted_total
        row[Field.STARTED_TOKENS] = scheduler.admitted_tokens_total
        row[Field.ENDED_UNSTARTED] = scheduler.ended_unstarted_total
        row[Field.ENDED_UNSTARTED_TOKENS] = scheduler.ended_unstarted_tokens_total
        row[Field.PREEMPTIONS] = scheduler.preempted_total
        row[Field.RECOMPUTED_TOKENS] = scheduler.recomputed_tokens_total
        row[Field.PREFIX_QUERY_TOKENS] = scheduler.prefix_query_tokens_total
        row[Field.PREFIX_HIT_TOKENS] = scheduler.prefix_hit_tokens_total
        row[Field.PROMPT_TOKENS] = scheduler.prompt_tokens_total
        row[Field.GENERATED_TOKENS] = scheduler.generated_tokens_total
        row[Field.UNKNOWN_ABORTS] = scheduler.unknown_aborts_total
        row[Field.REJECTED_FRAMES] = self._from_api.num_rejected + self._from_detok.num_rejected


def scheduler_config(config: ServerConfig, info: EngineInfo) -> SchedulerConfig:
    """The scheduler's limits: what the engine resolved, and what the user bounded."""
    return SchedulerConfig(
        num_slots=info.max_total_token_num,
        max_rows=info.running_max_req_size,
        max_batch_tokens=info.batch_max_tokens,
        max_req_total_len=info.max_req_total_len,
        eos_ids=frozenset(info.eos_ids),
        vocab_size=info.vocab_size,
    )


def run(config: ServerConfig, run_dir: Path, page: StatusPage) -> None:
    """Load the model, then serve until killed; raises ConfigError for what cannot be loaded."""
    row = page["router"]
    row.state = State.LOADING
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def path(name: str) -> Path:
        return channels.socket_path(run_dir, name)

    from_api = channels.Receiver(
        context, path(channels.ROUTER_FROM_API), Codec[ApiToRouter](ApiToRouter)
    )
    from_detok = channels.Receiver(
        context, path(channels.ROUTER_FROM_DETOK), Codec[DetokToRouter](DetokToRouter)
    )
    to_detok = channels.Sender(
        context, path(channels.DETOK_FROM_ROUTER), Codec[RouterToDetok](RouterToDetok)
    )
    runner = build_runner(config, run_dir, row)
    info = runner.info()
    policy = admission.policy(config.router.admission)
    cache = None if config.router.prefix_cache == "off" else PrefixCache()
    scheduler = Scheduler(scheduler_config(config, info), policy, prefix_cache=cache)
    row[Field.SLOTS_TOTAL] = info.max_total_token_num
    row[Field.MAX_RUNNING] = info.running_max_req_size
    write_engine_info(run_dir, info)
    garbage_collector.spare_live_objects()
    row.state = State.READY
    logger.info(
        "model ready: %s, %s on %s, tp %d, %d KV slots (%s), %d tokens per step",
        info.architecture,
        info.dtype,
        info.device,
        info.tp,
        info.max_total_token_num,
        info.kv_dtype,
        info.batch_max_tokens,
    )
    RouterLoop(
        scheduler, runner, row, from_api=from_api, from_detok=from_detok, to_detok=to_detok
    ).run_forever()
