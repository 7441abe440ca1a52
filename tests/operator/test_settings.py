"""The environment that the chart sets."""

from __future__ import annotations

import pytest

from lightllm_operator.errors import OperatorError
from lightllm_operator.settings import Settings, from_environment

IMAGE = {"LIGHTLLM_SERVING_IMAGE": "example.test/server:1"}


def test_what_is_not_set_is_the_default():
    empty = dict.fromkeys(("LIGHTLLM_NAMESPACE", "LIGHTLLM_LEASE_SECONDS", "POD_NAME"), "")
    assert from_environment({**IMAGE, **empty}) == Settings(serving_image="example.test/server:1")


def test_what_is_set_is_used():
    settings = from_environment(
        {**IMAGE, "LIGHTLLM_RESYNC_SECONDS": "0.5", "LIGHTLLM_LOG_FORMAT": "json"}
    )
    assert (settings.resync_seconds, settings.log_format) == (0.5, "json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LIGHTLLM_SERVING_IMAGE", ""),
        ("LIGHTLLM_RESYNC_SECONDS", "0"),
        ("LIGHTLLM_SCRAPE_SECONDS", "five"),
        ("LIGHTLLM_WATCH_STALE_SECONDS", "nan"),
        ("LIGHTLLM_LEASE_SECONDS", "inf"),
        ("LIGHTLLM_HEALTH_PORT", "65536"),
        ("LIGHTLLM_LOG_FORMAT", "xml"),
    ],
)
def test_what_is_wrong_is_named(name, value):
    with pytest.raises(OperatorError, match=name):
        from_environment({**IMAGE, name: value})
