"""Runners of small random models, shared by the engine's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_driver import server_config
from lightllm_server.engine.parallel import Solo
from lightllm_server.engine.runner import ModelRunner
from lightllm_server.models.config import ModelConfig
from lightllm_server.status_page import StatusPage, StatusRow


@pytest.fixture
def row(tmp_path: Path) -> StatusRow:
    return StatusPage.create(tmp_path / "status", ["router"])["router"]


@pytest.fixture
def make_runner(row: StatusRow) -> Iterator[Callable[..., ModelRunner]]:
    """Makes a runner of a model directory with options of `server_config`; ended with the test."""
    runners = []

    def make(model_dir: Path, **options: Any) -> ModelRunner:
        config = server_config(model_dir, **options)
        runner = ModelRunner(config, ModelConfig.from_dir(model_dir), Solo(), row)
        runners.append(runner)
        return runner

    yield make
    for runner in runners:
        runner.close()
