"""Milliseconds per plan() and commit() of the scheduler and of both together, without a model.

A full house: `--rows` rows running, `--waiting` requests queued, requests ending and starting all
the time. CPU time of the thread is measured, since the scheduler never waits. Owed are at most 5 ms
for both, the aim is 1 ms. Run it with `.venv/bin/python benchmarks/router_sim/bench_scheduler.py`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import deque

from lightllm_server.messages import Generate, SamplingParams
from lightllm_server.router import admission, garbage_collector
from lightllm_server.router.prefix_cache import PrefixCache
from lightllm_server.router.scheduler import Scheduler, SchedulerConfig
from lightllm_server.router.step_plan import StepPlan, StepResult

VOCAB = 32000
SYSTEM_PROMPTS = 8


def request(request_id: int, rng: random.Random, systems: list[tuple[int, ...]]) -> Generate:
    """A system prompt of 64 tokens, shared by an eighth of all, and 64 to 512 own tokens."""
    own = tuple(rng.randrange(2, VOCAB) for _ in range(rng.randint(64, 512)))
    return Generate(
        request_id=request_id,
        prompt_ids=rng.choice(systems) + own,
        sampling=SamplingParams(max_new_tokens=rng.randint(32, 512), temperature=1.0),
    )


def python_speed() -> float:
    """Milliseconds of a fixed loop: how fast the machine is just now."""
    began = time.thread_time()
    sum(range(1_000_000))
    return 1e3 * (time.thread_time() - began)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def run(policy: str, args: argparse.Namespace) -> list[str]:
    """Fill up, then measure `--steps` steps; a table row per figure."""
    rng = random.Random(0)
    systems = [tuple(rng.randrange(2, VOCAB) for _ in range(64)) for _ in range(SYSTEM_PROMPTS)]
    config = SchedulerConfig(
        num_slots=args.slots,
        max_rows=args.rows,
        max_batch_tokens=8192,
        max_req_total_len=4096,
        eos_ids=frozenset({1}),
        vocab_size=VOCAB,
    )
    scheduler = Scheduler(config, admission.policy(policy), prefix_cache=PrefixCache())
    next_id = 0
    flight: deque[StepPlan] = deque()
    plan_ms: list[float] = []
    commit_ms: list[float] = []
    step_ms: list[float] = []
    rows: list[int] = []
    garbage_collector.spare_live_objects()
    for step in range(args.warmup + args.steps):
        while scheduler.num_waiting < args.waiting:
            scheduler.add(request(next_id, rng, systems))
            next_id += 1
        began = time.thread_time()
        plan = scheduler.plan()
        planned = time.thread_time()
        if plan is not None:
            flight.append(plan)
        oldest = flight.popleft() if len(flight) > 1 or plan is None else None
        if oldest is not None:
            count = len(oldest.sample_rows)
            tokens = [1 if rng.random() < 0.002 else 2 for _ in range(count)]
            result = StepResult(token_ids=tokens, logprobs=[-1.0] * count)
            # as in the router, where the device works meanwhile
            garbage_collector.walk_new_objects()
            before = time.thread_time()
            scheduler.commit(oldest, result)
            after = time.thread_time()
        if step >= args.warmup and oldest is not None:
            plan_ms.append(1e3 * (planned - began))
            commit_ms.append(1e3 * (after - before))
            step_ms.append(plan_ms[-1] + commit_ms[-1])
            rows.append(scheduler.num_running_rows)
    label = (
        f"{policy:12s} rows {sum(rows) // len(rows):5d} waiting {scheduler.num_waiting:6d} "
        f"preempted {scheduler.preempted_total:4d} "
        f"hits {scheduler.prefix_hit_tokens_total / scheduler.prefix_query_tokens_total:.0%}"
    )
    return [
        f"{label} {name:6s} p50 {percentile(ms, 0.5):6.3f} p99 {percentile(ms, 0.99):6.3f} "
        f"max {max(ms):6.3f} mean {sum(ms) / len(ms):6.3f} ms"
        for name, ms in (("plan", plan_ms), ("commit", commit_ms), ("both", step_ms))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=600_000, help="KV slots; fewer = pressure")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    print(f"sum(range(1_000_000)) on this machine now: {python_speed():.1f} ms")
    for policy in ("efficient", "past-future", "conservative"):
        print("\n".join(run(policy, args)), flush=True)


if __name__ == "__main__":
    main()
