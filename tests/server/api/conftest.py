"""Servers that several API tests share: the real tree, and the same with a router without model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import fake_engine
from server_process import ServerProcess
from tiny_llama import tiny_llama


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """The real processes on a tiny random model; in float32, since greedy choices that a lower
    precision makes equal may differ with the batch."""
    options = ["--max-req-total-len", "512", "--max-total-token-num", "8192", "--dtype", "float32"]
    with ServerProcess(tiny_llama(), *options, "--served-model-name", "tiny") as process:
        process.wait_ready(120)
        yield process


@pytest.fixture(scope="session")
def fake() -> Iterator[ServerProcess]:
    """Answers with the prompt's own tokens, one per 2 ms."""
    options = ("--max-req-total-len", "4096", "--served-model-name", "fake")
    with ServerProcess(
        tiny_llama(), *options, command=fake_engine.COMMAND, environment={"FAKE_STEP_MS": "2"}
    ) as process:
        process.wait_ready(120)
        yield process
