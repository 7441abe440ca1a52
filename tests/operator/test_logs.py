"""The log's two formats."""

from __future__ import annotations

import json
import logging

import pytest

from lightllm_operator import logs


@pytest.fixture
def root():
    """The root logger, put back after the test."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = before
    root.setLevel(level)


def test_json_is_one_object_a_line(root, capsys):
    logs.configure("json")
    try:
        raise ValueError("“no”")
    except ValueError:
        logging.getLogger("lightllm_operator.x").exception("%s failed", "team/demo")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["message"]) == ("ERROR", "team/demo failed")
    assert "ValueError: “no”" in entry["exception"]


def test_kopf_is_quiet_about_each_attempt_but_not_about_the_rest(root, capsys):
    logs.configure("text")
    kopf = logging.getLogger("kopf._core.reactor")
    kopf.error("Request attempt #1 failed; will retry: GET /pods")
    kopf.info("Handler succeeded")
    kopf.error("the watch has crashed")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].endswith("ERROR kopf._core.reactor: the watch has crashed")
