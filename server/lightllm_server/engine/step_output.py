"""What a launched step leaves on the device, on its way to the host."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch

from lightllm_server.engine.prompt_logprobs import ChunkLogprobs
from lightllm_server.engine.sampler import Sampled
from lightllm_server.engine.staging import CopyEvent
from lightllm_server.errors import EngineError
from lightllm_server.router.step_plan import StepResult

__all__ = ["StepOutput"]

# between two looks at a copy: the next step is queued already, so the device does not wait for us
_LOOK_S = 50e-6


@dataclass(slots=True)
class StepOutput:
    """sampled: None if the step samples nothing; prompts: chunk index → its logprobs."""

    sampled: Sampled | None
    prompts: dict[int, ChunkLogprobs]
    _copied: CopyEvent | None = field(default=None, init=False)

    def start_copy(self) -> None:
        """On CUDA, queue the copy to the host right behind the step, before later steps are
        queued.
        """
        if not self._is_on_cuda():
            return
        if (sampled := self.sampled) is not None:
            self.sampled = Sampled(
                _to_host(sampled.ids),
                _to_host(sampled.logprobs),
                sampled.top_counts,
                None if sampled.top_logprobs is None else _to_host(sampled.top_logprobs),
                None if sampled.top_ids is None else _to_host(sampled.top_ids),
            )
        for chunk in self.prompts.values():
            chunk.parts[:] = map(_to_host, chunk.parts)
            chunk.tops[:] = [(_to_host(values), _to_host(ids)) for values, ids in chunk.tops]
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._copied = event

    def _is_on_cuda(self) -> bool:
        tensors = [part for chunk in self.prompts.values() for part in chunk.parts]
        if self.sampled is not None:
            tensors.append(self.sampled.ids)
        return any(tensor.is_cuda for tensor in tensors)

    def result(self, timeout: float) -> StepResult:
        """Wait for the copy; raises EngineError if the model computed no number, and TimeoutError
        after `timeout` seconds.
        """
        self._wait(timeout)
        prompts = {index: chunk.message() for index, chunk in self.prompts.items()}
        if self.sampled is None:
            return StepResult(token_ids=[], logprobs=[], prompt_logprobs=prompts)
        logprobs = self.sampled.logprobs.tolist()
        if any(map(math.isnan, logprobs)):
            rows = [index for index, logprob in enumerate(logprobs) if math.isnan(logprob)]
            raise EngineError(f"the model's logits are not numbers, at sampled rows {rows[:8]}")
        return StepResult(
            token_ids=self.sampled.ids.tolist(),
            logprobs=logprobs,
            tops=self.sampled.tops(),
            prompt_logprobs=prompts,
        )

    def _wait(self, timeout: float) -> None:
        """Look again and again: CUDA's own wait has no limit, and keeps a core busy."""
        if self._copied is None:
            return
        deadline = time.monotonic() + timeout
        while not self._copied.query():
            if time.monotonic() >= deadline:
                raise TimeoutError
            time.sleep(_LOOK_S)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    # torch keeps pinned blocks and hands one out again once the copy to it is done
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
