"""The real scheduler over the real runner in one process, one step ahead like the router."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from arrivals import Request

from lightllm_server.config import EngineConfig, RouterConfig, ServerConfig
from lightllm_server.engine.build import InFlightStep
from lightllm_server.engine.cuda_graphs import EagerRecorder
from lightllm_server.engine.parallel import Solo
from lightllm_server.engine.runner import ModelRunner
from lightllm_server.messages import Generate, RequestId, SamplingParams, TokenBatch
from lightllm_server.models.config import ModelConfig
from lightllm_server.router import admission
from lightllm_server.router.prefix_cache import PrefixCache
from lightllm_server.router.scheduler import Scheduler, SchedulerConfig
from lightllm_server.router.step_plan import StepPlan
from lightllm_server.status_page import StatusPage

WAIT_SECONDS = 120.0


def make_runner(model_dir: Path, device: torch.device, **options: Any) -> ModelRunner:
    """options: of EngineConfig or RouterConfig.

    On the CPU decode steps are replayed too, as far as that goes without a GPU.
    """
    router = {name: options.pop(name) for name in list(options) if name in RouterConfig.__slots__}
    config = ServerConfig(
        engine=EngineConfig(model_dir=str(model_dir), device=device.type, **options),
        router=RouterConfig(**router),
    )
    page = StatusPage.create(Path(tempfile.mkdtemp()) / "status", ["router"])
    runner = ModelRunner(config, ModelConfig.from_dir(model_dir), Solo(), page["router"])
    if device.type == "cpu" and not config.engine.disable_cudagraph:
        with torch.inference_mode():
            runner._shard.prepare_graphs(min(4, config.engine.graph_max_batch_size))
            runner._shard.record_graphs(EagerRecorder(), lambda: None)
    runner.warm_up()
    return runner


class Serving:
    """Requests in, tokens out; `turn` is one turn of the router's loop."""

    def __init__(
        self,
        runner: ModelRunner,
        *,
        num_slots: int | None = None,
        policy: admission.AdmissionPolicy | None = None,
        prefix_cache: bool = True,
    ) -> None:
        self.runner = runner
        info = runner.info()
        self.scheduler = Scheduler(
            SchedulerConfig(
                num_slots=num_slots or info.max_total_token_num,
                max_rows=info.running_max_req_size,
                max_batch_tokens=info.batch_max_tokens,
                max_req_total_len=info.max_req_total_len,
                eos_ids=frozenset(info.eos_ids),
                vocab_size=info.vocab_size,
            ),
            policy or admission.policy("efficient"),
            prefix_cache=PrefixCache() if prefix_cache else None,
        )
        # request → choice → its tokens, and the model's logprob of each
        self.tokens: dict[int, dict[int, list[int]]] = {}
        self.logprobs: dict[int, dict[int, list[float]]] = {}
        self.first_token_at: dict[int, float] = {}
        self.num_ended = self._prompt_tokens = 0
        # decode rows of the committed steps that did nothing else
        self.pure_decode_rows: list[int] = []
        self._in_flight: deque[tuple[StepPlan, InFlightStep]] = deque()

    @property
    def context_tokens(self) -> int:
        """Of all requests: their prompts and what they generated."""
        outputs = (len(ids) for choices in self.tokens.values() for ids in choices.values())
        return self._prompt_tokens + sum(outputs)

    def add(self, prompt: tuple[int, ...], **sampling: Any) -> int:
        request_id = RequestId(len(self.tokens) + 1)
        self.tokens[request_id], self.logprobs[request_id] = {}, {}
        self._prompt_tokens += len(prompt)
        params = SamplingParams(**{"ignore_eos": True, **sampling})
        self.scheduler.add(Generate(request_id=request_id, prompt_ids=prompt, sampling=params))
        return request_id

    def turn(self) -> bool:
        """Plan and launch, commit the oldest; False if there was nothing to do."""
        plan = self.scheduler.plan() if len(self._in_flight) < 2 else None
        if plan is not None:
            self._in_flight.append((plan, self.runner.launch(plan)))
        self._take(self.scheduler.take_events())
        if not self._in_flight:
            return False
        if plan is None or len(self._in_flight) == 2:
            done, step = self._in_flight.popleft()
            self._take(self.scheduler.commit(done, step.wait(WAIT_SECONDS)))
            if not len(done.token_ids):
                self.pure_decode_rows.append(len(done.decode_rows))
        return True

    def finish(self) -> None:
        while self.num_ended < len(self.tokens) or self._in_flight:
            self.turn()

    def generate(self, prompts: list[tuple[int, ...]], **sampling: Any) -> list[list[int]]:
        """Run the prompts together; the first choice of each."""
        requests = [self.add(prompt, **sampling) for prompt in prompts]
        self.finish()
        return [self.tokens[request][0] for request in requests]

    def until_all_decode(self, count: int) -> None:
        """Turn until a committed step did nothing but decode `count` rows."""
        while not self.pure_decode_rows or self.pure_decode_rows[-1] != count:
            self.turn()
            if self.num_ended:
                raise RuntimeError(f"a request ended before {count} rows decoded together")

    def _take(self, batch: TokenBatch | None) -> None:
        if batch is None:
            return
        for token in batch.tokens:
            self.first_token_at.setdefault(token.request_id, time.perf_counter())
            for kept, value in ((self.tokens, token.token_id), (self.logprobs, token.logprob)):
                kept[token.request_id].setdefault(token.choice, []).append(value)
        self.num_ended += len(batch.ended)


def load_turns(serving: Serving, requests: list[Request]) -> Iterator[None]:
    """Add the requests at their times and serve them, one turn each."""
    began = time.perf_counter()
    waiting = deque(requests)
    while waiting or serving.num_ended < len(serving.tokens):
        now = time.perf_counter() - began
        while waiting and waiting[0].due <= now:
            request = waiting.popleft()
            serving.add(request.prompt_ids, max_new_tokens=request.output_len)
        if not serving.turn() and waiting:
            time.sleep(max(0.0, min(0.001, waiting[0].due - now)))
        yield
    serving.finish()


def serve_load(serving: Serving, requests: list[Request]) -> dict[str, Any]:
    """Requests at their times; figures of LightLLM's published benchmark."""
    began = time.perf_counter()
    for _ in load_turns(serving, requests):
        pass
    seconds = time.perf_counter() - began
    first_tokens = serving.first_token_at.items()
    # the first request has number 1
    ttft = sorted(at - began - requests[request - 1].due for request, at in first_tokens)
    outputs = sum(request.output_len for request in requests)
    return {
        "requests": len(requests),
        "requests_per_s": round(len(requests) / seconds, 2),
        "output_tokens_per_s": round(outputs / seconds, 1),
        "total_tokens_per_s": round(
            (outputs + sum(len(request.prompt_ids) for request in requests)) / seconds, 1
        ),
        "ttft_p50_s": round(ttft[len(ttft) // 2], 3),
        "preempted": serving.scheduler.preempted_total,
        "mean_decode_rows": round(
            sum(serving.pure_decode_rows) / max(1, len(serving.pure_decode_rows)), 1
        ),
    }
