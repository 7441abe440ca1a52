"""Drives a real runner with the real scheduler, one step ahead, in place of the router process."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from lightllm_server.config import EngineConfig, RouterConfig, ServerConfig
from lightllm_server.engine.build import InFlightStep, Runner
from lightllm_server.messages import (
    Ended,
    Generate,
    Opened,
    RequestId,
    SampledToken,
    SamplingParams,
)
from lightllm_server.router import admission
from lightllm_server.router.prefix_cache import PrefixCache
from lightllm_server.router.scheduler import Scheduler, SchedulerConfig
from lightllm_server.router.step_plan import StepPlan

__all__ = ["EngineDriver", "server_config"]


def server_config(model_dir: Path, **options: Any) -> ServerConfig:
    """A small float32 CPU engine; options of EngineConfig or RouterConfig by name."""
    engine = {"device": "cpu", "dtype": "float32", "max_total_token_num": 1024}
    router = {"running_max_req_size": 16, "batch_max_tokens": 256}
    for name, value in options.items():
        (router if name in RouterConfig.__dataclass_fields__ else engine)[name] = value
    return ServerConfig(
        engine=EngineConfig(model_dir=str(model_dir), **engine), router=RouterConfig(**router)
    )


class EngineDriver:
    """One scheduler over one runner; every run leaves its prefix tree to the next."""

    def __init__(
        self,
        runner: Runner,
        *,
        num_slots: int | None = None,
        max_batch_tokens: int | None = None,
        prefix_cache: bool = True,
        policy: admission.AdmissionPolicy | None = None,
    ) -> None:
        self.runner = runner
        info = runner.info()
        self.scheduler = Scheduler(
            SchedulerConfig(
                num_slots=num_slots or info.max_total_token_num,
                max_rows=info.running_max_req_size,
                max_batch_tokens=max_batch_tokens or info.batch_max_tokens,
                max_req_total_len=info.max_req_total_len,
                eos_ids=frozenset(info.eos_ids),
                vocab_size=info.vocab_size,
            ),
            policy or admission.EfficientAdmission(),
            prefix_cache=PrefixCache() if prefix_cache else None,
        )
        self._next_id = 1
        self.tokens: dict[int, list[SampledToken]] = {}
        self.opened: dict[int, Opened] = {}
        self.ended: dict[int, Ended] = {}
        self.num_mixed_steps = 0

    def add(self, prompt: list[int], **sampling: Any) -> int:
        """Queue a request; returns its id."""
        request_id, self._next_id = RequestId(self._next_id), self._next_id + 1
        self.tokens[request_id] = []
        params = SamplingParams(**{"ignore_eos": True, **sampling})
        self.scheduler.add(
            Generate(request_id=request_id, prompt_ids=tuple(prompt), sampling=params)
        )
        return request_id

    def run(self) -> None:
        """Until every request has ended."""
        in_flight: deque[tuple[StepPlan, InFlightStep]] = deque()
        while len(self.ended) < len(self.tokens):
            plan = self.scheduler.plan() if len(in_flight) < 2 else None
            if plan is not None:
                self.num_mixed_steps += bool(len(plan.decode_rows) and len(plan.chunk_rows))
                in_flight.append((plan, self.runner.launch(plan)))
            if in_flight and (plan is None or len(in_flight) == 2):
                done, step = in_flight.popleft()
                self._take(self.scheduler.commit(done, step.wait(30.0)))
            self._take(self.scheduler.take_events())
        while in_flight:
            done, step = in_flight.popleft()
            self._take(self.scheduler.commit(done, step.wait(30.0)))

    def _take(self, batch: Any) -> None:
        if batch is None:
            return
        for opened in batch.opened:
            self.opened[opened.request_id] = opened
        for token in batch.tokens:
            self.tokens[token.request_id].append(token)
        for ended in batch.ended:
            assert ended.request_id not in self.ended, ended
            self.ended[ended.request_id] = ended

    def ids(self, request_id: int, choice: int = 0) -> list[int]:
        """The tokens of one choice."""
        return [t.token_id for t in self.tokens[request_id] if t.choice == choice]

    def generate(self, prompts: list[list[int]], **sampling: Any) -> list[list[int]]:
        """Run the prompts together; returns the first choice of each."""
        request_ids = [self.add(prompt, **sampling) for prompt in prompts]
        self.run()
        return [self.ids(request_id) for request_id in request_ids]
