"""Makes the runner that the configuration asks for. Imports torch only if a model is really run."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import zmq

from lightllm_server.config import ServerConfig
from lightllm_server.engine.null_runner import NullRunner
from lightllm_server.engine_info import EngineInfo
from lightllm_server.models.config import ModelConfig
from lightllm_server.router.step_plan import StepPlan, StepResult
from lightllm_server.status_page import StatusRow

__all__ = ["InFlightStep", "Runner", "build_runner"]


class InFlightStep(Protocol):
    def wait(self, timeout: float) -> StepResult:
        """The step's result, at most `timeout` seconds later; raises EngineError if it failed, and
        DeviceError if no later one can succeed.
        """
        ...


class Runner(Protocol):
    """Carries plans out in launch order; a failed step leaves it usable."""

    def launch(self, plan: StepPlan) -> InFlightStep:
        """Start a step without waiting for it."""
        ...

    def info(self) -> EngineInfo:
        """What was resolved at start."""
        ...


def build_runner(config: ServerConfig, run_dir: Path, row: StatusRow) -> Runner:
    """Load the model, join the other ranks, size the cache; raises ConfigError."""
    model_config = ModelConfig.from_dir(config.engine.model_dir)
    if config.engine.null_model:
        return NullRunner(config, model_config, row)
    # torch costs seconds, which the null model does without
    from lightllm_server.engine.device import resolve_device
    from lightllm_server.engine.parallel import join_ranks
    from lightllm_server.engine.rank_plans import RankSenders
    from lightllm_server.engine.runner import ModelRunner

    tp = config.engine.tp
    ranks = join_ranks(0, tp, run_dir, resolve_device(config.engine, 0))
    others = RankSenders(zmq.Context(), run_dir, tp) if tp > 1 else None
    runner = ModelRunner(config, model_config, ranks, row, others=others)
    runner.warm_up()
    return runner
