"""A runner without a model: fixed tokens at once, to measure everything else. No torch here."""

from __future__ import annotations

import platform

import numpy as np

from lightllm_server.config import ServerConfig
from lightllm_server.engine.limits import max_request_length
from lightllm_server.engine_info import EngineInfo
from lightllm_server.models.config import ModelConfig
from lightllm_server.models.kv_support import kv_bytes_per_token
from lightllm_server.router.step_plan import StepPlan, StepResult
from lightllm_server.status_page import StatusRow

__all__ = ["NullRunner", "NullStep"]

_NUM_SLOTS = 2**18
_BATCH_MAX_TOKENS = 8192


class NullStep:
    """A step that is done when it is launched."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self, timeout: float) -> StepResult:
        """The result, at once."""
        return self._result


class NullRunner:
    """Samples id `position mod V`, or the next id that does not end the sequence, with logprob
    0.
    """

    def __init__(self, config: ServerConfig, model_config: ModelConfig, row: StatusRow) -> None:
        self._config = config
        self._model = model_config
        self._row = row
        ids = np.arange(model_config.vocab_size, dtype=np.int64)
        allowed = ids[~np.isin(ids, model_config.eos_ids)]
        self._ids = allowed if len(allowed) else ids

    def launch(self, plan: StepPlan) -> NullStep:
        self._row.tick()
        ids = self._ids[plan.sample_positions % len(self._ids)].tolist()
        return NullStep(StepResult(token_ids=ids, logprobs=[0.0] * len(ids)))

    def info(self) -> EngineInfo:
        model, router = self._model, self._config.router
        num_slots = self._config.engine.max_total_token_num or _NUM_SLOTS
        max_length = max_request_length(self._config, model)
        return EngineInfo(
            family=model.family,
            architecture=model.architecture,
            device="none",
            dtype=model.dtype,
            weight_dtype="none",
            kv_dtype=model.dtype,
            kv_dtype_reason="the null model keeps no KV cache",
            tp=1,
            num_heads=model.num_heads,
            num_kv_heads=model.num_kv_heads,
            vocab_size=model.vocab_size,
            eos_ids=model.eos_ids,
            max_total_token_num=num_slots,
            max_req_total_len=min(max_length, num_slots),
            running_max_req_size=router.running_max_req_size,
            batch_max_tokens=router.batch_max_tokens or _BATCH_MAX_TOKENS,
            kv_bytes_per_token=kv_bytes_per_token(model, element_bytes=2),
            weight_bytes=0,
            versions={"python": platform.python_version()},
        )
