"""What the CPU does for a decode step beside the model, part by part, at batch 1, 32 and 256.

    .venv/bin/python benchmarks/engine/profile_step.py [--markdown FILE]

CPU time of the thread in µs per step, median and 99th percentile. The scheduler, the step's inputs
(for an eager step and for the replay of a recorded one), the sampler's tables, the reading of
results and the messages to detokenization are the real ones; there is no model, and what CUDA's own
calls would add is not seen here. Half the rows are drawn at a temperature, half are greedy.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import zmq

from lightllm_kernels.workspace import Workspace
from lightllm_server import channels
from lightllm_server.engine.cuda_graphs import DecodeGraphs, EagerRecorder, graph_sizes
from lightllm_server.engine.forward_state import RequestTable, make_step_inputs
from lightllm_server.engine.kv_pool import KVLayout, KVPool
from lightllm_server.engine.sampler import Sampled, Sampler
from lightllm_server.engine.staging import PinnedUploader
from lightllm_server.engine.step_output import StepOutput
from lightllm_server.messages import Codec, Generate, RequestId, RouterToDetok, SamplingParams
from lightllm_server.router import admission, garbage_collector
from lightllm_server.router.prefix_cache import PrefixCache
from lightllm_server.router.scheduler import Scheduler, SchedulerConfig
from lightllm_server.router.step_plan import StepPlan

BATCHES = (1, 32, 256)
VOCAB, MAX_LENGTH, PROMPT = 32000, 4096, 128
WARM_STEPS = 20
CPU = torch.device("cpu")
PARTS = {
    "plan": "`scheduler.plan()`",
    "inputs, eager": "request table, uploads and attention batch of an eager step",
    "inputs, replay": "static inputs of a recorded step, its padding",
    "sampling tables": "parameters of the drawn rows, gathered and uploaded",
    "read result": "ids and logprobs as Python lists, the check for NaN",
    "commit": "`scheduler.commit()`",
    "send": "encoding and sending the step's tokens",
}

T = TypeVar("T")


class DoneEvent:
    """A copy on the CPU is done when it returns."""

    def record(self) -> None: ...

    def query(self) -> bool:
        return True


class Bench:
    """Everything of a step but the model, for `batch` running rows."""

    def __init__(self, batch: int, steps: int, folder: Path) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self._batch = batch
        self._scheduler = Scheduler(
            SchedulerConfig(
                num_slots=batch * (PROMPT + steps + 100),
                max_rows=batch,
                max_batch_tokens=8192,
                max_req_total_len=MAX_LENGTH,
                eos_ids=frozenset({1}),
                vocab_size=VOCAB,
            ),
            admission.policy("efficient"),
            prefix_cache=PrefixCache(),
        )
        uploader = PinnedUploader(CPU, make_event=DoneEvent, pin=False)
        self._uploader = uploader
        layout = KVLayout(num_layers=1, num_kv_heads=1, head_dim=8, dtype=torch.float32)
        self._pool = KVPool(layout, batch * (PROMPT + steps + 100), CPU)
        self._table = RequestTable.make(batch, MAX_LENGTH, CPU)
        self._workspace = Workspace()
        self._graphs = DecodeGraphs(
            lambda static: None,
            graph_sizes(batch),
            vocab_size=8,
            hold_row=batch,
            device=CPU,
            uploader=uploader,
        )
        for size in self._graphs.sizes:
            self._graphs.record(EagerRecorder(), size)
        self._sampler = Sampler(
            num_rows=batch, vocab_size=VOCAB, eos_ids=(1,), device=CPU, uploader=uploader
        )
        codec: Codec[Any] = Codec(RouterToDetok)
        context: zmq.Context[Any] = zmq.Context.instance()
        path = folder / f"detok-{batch}"
        self._receiver = channels.Receiver(context, path, codec)
        self._sender = channels.Sender(context, path, codec)
        rng = random.Random(0)
        for index in range(batch):
            sampling = SamplingParams(
                max_new_tokens=steps + 50, temperature=0.8 * (index % 2), top_p=0.9, ignore_eos=True
            )
            prompt = tuple(rng.randrange(2, VOCAB) for _ in range(PROMPT))
            self._scheduler.add(
                Generate(request_id=RequestId(index + 1), prompt_ids=prompt, sampling=sampling)
            )
        self._flight: deque[StepPlan] = deque()

    def step(self) -> None:
        """Plan and launch one step, commit the one before."""
        plan = self._timed("plan", self._scheduler.plan)
        assert plan is not None, "the requests outlast the steps"
        for start in plan.starts:
            self._sampler.start(start)
        if self._graphs.fits(plan):
            self._timed("inputs, replay", lambda: self._graphs.replay(plan))
            self._timed("inputs, eager", lambda: self._inputs(plan))
            self._timed(
                "sampling tables",
                lambda: self._sampler._random_rows(plan.sample_rows, plan.sample_positions),
            )
        self._flight.append(plan)
        if len(self._flight) > 1:
            self._finish(self._flight.popleft())

    def _inputs(self, plan: StepPlan) -> object:
        return make_step_inputs(
            plan, self._table, self._pool, self._workspace, torch.float32, self._uploader
        )

    def _finish(self, plan: StepPlan) -> None:
        count = len(plan.sample_rows)
        output = StepOutput(Sampled(torch.full((count,), 5), torch.zeros(count), {}), {})
        result = self._timed("read result", lambda: output.result(timeout=1.0))
        batch = self._timed("commit", lambda: self._scheduler.commit(plan, result))
        self._timed("send", lambda: self._sender.send(batch))
        self._receiver.receive_all()

    def _timed(self, part: str, function: Callable[[], T]) -> T:
        began = time.thread_time_ns()
        result = function()
        self.times[part].append((time.thread_time_ns() - began) / 1e3)
        return result

    def run(self, steps: int) -> dict[str, list[float]]:
        for _ in range(WARM_STEPS):
            self.step()
        garbage_collector.spare_live_objects()
        self.times.clear()
        for _ in range(steps):
            self.step()
        return dict(self.times)


def table(results: dict[int, dict[str, list[float]]]) -> list[str]:
    """Markdown rows; an eager step's sum counts its own inputs, a replay's its own."""
    head = " | ".join(f"batch {batch}: median | p99" for batch in results)
    lines = [f"| part | {head} |", "|---|" + "---:|---:|" * len(results)]
    for part, what in PARTS.items():
        cells = []
        for times in results.values():
            values = sorted(times[part])
            cells += [statistics.median(values), values[int(0.99 * len(values))]]
        lines.append(f"| {part}: {what} | " + " | ".join(f"{cell:.0f}" for cell in cells) + " |")
    for kind, other in (("replay", "eager"), ("eager", "replay")):
        sums = [
            sum(statistics.median(values) for part, values in times.items() if other not in part)
            for times in results.values()
        ]
        cells_text = " | ".join(f"**{value:.0f}** | " for value in sums)
        lines.append(f"| **all, {kind}** | {cells_text}|")
    return lines


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--markdown", type=Path, help="append the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = {
            batch: Bench(batch, args.steps + WARM_STEPS, Path(folder)).run(args.steps)
            for batch in BATCHES
        }
    began = time.thread_time()
    sum(range(1_000_000))
    speed = 1e3 * (time.thread_time() - began)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    lines = [
        f"{versions}, one thread; `sum(range(1_000_000))` takes {speed:.1f} ms here.",
        "CPU µs per step:",
        "",
        *table(results),
    ]
    print("\n".join(lines))
    if args.markdown:
        with args.markdown.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
