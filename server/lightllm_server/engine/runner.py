"""Rank 0 of the engine: launches plans, samples, and hands each result over when it is waited for.

On the CPU one device thread carries the plans out in launch order, so that the router plans and
sends while a step computes; on CUDA a launch queues the step's work on the stream.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import torch

from lightllm_server.config import ServerConfig
from lightllm_server.engine.device import is_device_fault
from lightllm_server.engine.parallel import Ranks
from lightllm_server.engine.probe_plans import probe_plan, warm_plans
from lightllm_server.engine.profile import size_engine
from lightllm_server.engine.prompt_logprobs import ChunkLogprobs, PromptScorer
from lightllm_server.engine.sampler import Sampler
from lightllm_server.engine.shard import ModelShard
from lightllm_server.engine.step_output import StepOutput
from lightllm_server.engine_info import EngineInfo
from lightllm_server.errors import EXIT_SOFTWARE, DeviceError, EngineError
from lightllm_server.models.config import ModelConfig
from lightllm_server.router.step_plan import StepPlan, StepResult
from lightllm_server.status_page import StatusRow

__all__ = ["LaunchedStep", "ModelRunner", "PlanSink"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_COMPILE_TIMEOUT_S = 300.0


class PlanSink(Protocol):
    """Where a launched plan goes beside the own forward pass: the other ranks."""

    def send(self, plan: StepPlan, /) -> None: ...


class LaunchedStep:
    """A step under way."""

    def __init__(self, step: int, output: Future[StepOutput]) -> None:
        self._step = step
        self._output = output

    def wait(self, timeout: float) -> StepResult:
        """The step's result, at most `timeout` seconds later; raises EngineError if it failed, and
        DeviceError if no later one can succeed.
        """
        try:
            return self._finish(timeout)
        except TimeoutError as error:
            raise EngineError(f"step {self._step} took longer than {timeout:g} s") from error
        except EngineError:
            raise
        except Exception as error:
            if is_device_fault(error):
                raise DeviceError(f"step {self._step} lost the device: {error}") from error
            raise EngineError(f"step {self._step} failed: {error}") from error

    def _finish(self, timeout: float) -> StepResult:
        deadline = time.monotonic() + timeout
        output = self._output.result(timeout)
        return output.result(deadline - time.monotonic())


class ModelRunner:
    """Raises ConfigError from the constructor for what cannot be loaded or does not fit."""

    def __init__(
        self,
        config: ServerConfig,
        model_config: ModelConfig,
        ranks: Ranks,
        row: StatusRow,
        *,
        others: PlanSink | None = None,
    ) -> None:
        self._config = config
        self._ranks = ranks
        self._others = others
        # the thread that computes also loads: OpenMP keeps a team of threads per calling thread
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._shard, self._batch_max_tokens = self._on_device(
            lambda: _load(config, model_config, ranks, row)
        )
        self._sampler = Sampler(
            num_rows=self._shard.num_rows,
            vocab_size=model_config.vocab_size,
            eos_ids=model_config.eos_ids,
            device=self._shard.device,
            uploader=self._shard.uploader,
        )
        self._scorer = PromptScorer(
            model_config.vocab_size, self._shard.logits, self._shard.uploader
        )

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Start a step; plans are carried out in launch order. The plan's arrays are kept."""
        if self._others is not None:
            self._others.send(plan)
        if self._shard.device.type == "cpu":
            return LaunchedStep(plan.step, self._device_thread.submit(self._execute, plan))
        output: Future[StepOutput] = Future()
        try:
            output.set_result(self._execute(plan))
        except Exception as error:
            output.set_exception(error)
        return LaunchedStep(plan.step, output)

    def warm_up(self) -> None:
        """Run a small step through sampling, so that the first request pays for no lazy work.

        On CUDA a few more: kernels are compiled, also those of eager decode steps, which graphs do
        not replace in steps that prefill too.
        """
        self.launch(probe_plan(self._shard, 1)).wait(60.0)
        if self._shard.device.type == "cuda":
            for plan in warm_plans(self._shard):
                self.launch(plan).wait(_COMPILE_TIMEOUT_S)

    def info(self) -> EngineInfo:
        shard, model = self._shard, self._shard.model_config
        return EngineInfo(
            family=model.family,
            architecture=model.architecture,
            device=str(shard.device),
            dtype=_name(shard.dtype),
            weight_dtype=self._config.engine.weight_dtype.replace("auto", _name(shard.dtype)),
            kv_dtype=_name(shard.layout.dtype),
            kv_dtype_reason=shard.kv_dtype_reason,
            tp=self._ranks.size,
            num_heads=model.num_heads,
            num_kv_heads=model.num_kv_heads,
            vocab_size=model.vocab_size,
            eos_ids=model.eos_ids,
            max_total_token_num=shard.num_slots,
            max_req_total_len=min(shard.max_length, shard.num_slots),
            running_max_req_size=shard.num_rows,
            batch_max_tokens=self._batch_max_tokens,
            kv_bytes_per_token=shard.layout.bytes_per_token,
            weight_bytes=shard.weight_bytes,
            versions={"python": platform.python_version(), "torch": str(torch.__version__)},
        )

    def close(self) -> None:
        """End the device thread once its steps are done."""
        self._device_thread.shutdown()

    def _on_device(self, function: Callable[[], T]) -> T:
        return self._device_thread.submit(function).result()

    @torch.inference_mode()
    def _execute(self, plan: StepPlan) -> StepOutput:
        try:
            output = self._forward(plan)
            output.start_copy()
        except Exception:
            if self._ranks.size > 1:
                # the other ranks are somewhere inside the same step: no step can follow
                logger.exception("step %d failed on rank 0", plan.step)
                os._exit(EXIT_SOFTWARE)
            raise
        return output

    def _forward(self, plan: StepPlan) -> StepOutput:
        for start in plan.starts:
            self._sampler.start(start)
            self._scorer.start(start)
        prompts: dict[int, ChunkLogprobs] = {}
        if self._shard.replays(plan):
            logits = self._shard.replay(plan)
        else:
            hidden = self._shard.forward(plan)
            prompts = self._scorer.score(hidden, plan)
            if not len(plan.sample_rows):
                return StepOutput(None, prompts)
            logits = self._shard.sample_logits(hidden, plan)
        sampled = self._sampler.sample(logits, plan)
        self._shard.keep_ids(plan, self._ranks.broadcast(sampled.ids))
        return StepOutput(sampled, prompts)


@torch.inference_mode()
def _load(
    config: ServerConfig, model_config: ModelConfig, ranks: Ranks, row: StatusRow
) -> tuple[ModelShard, int]:
    shard = ModelShard(config, model_config, ranks, row)
    return shard, size_engine(config, shard)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
