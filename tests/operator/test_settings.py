"""The operator's own settings: what the environment may say, and what is refused by name."""

from __future__ import annotations

import pytest

from lightllm_operator.errors import OperatorError
from lightllm_operator.settings import Settings, from_environment

IMAGE = {"LIGHTLLM_SERVING_IMAGE": "registry/server:1"}


def test_the_image_alone_is_needed():
    assert from_environment(IMAGE) == Settings(serving_image="registry/server:1")


def test_periods_and_port_are_read():
    settings = from_environment(
        {
            **IMAGE,
            "LIGHTLLM_SCRAPE_SECONDS": "0.5",
            "LIGHTLLM_RESYNC_SECONDS": "2",
            "LIGHTLLM_HEALTH_PORT": "9000",
        }
    )
    assert (settings.scrape_seconds, settings.resync_seconds) == (0.5, 2.0)
    assert settings.health_port == 9000


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "1e9"])
def test_a_period_that_is_none_is_refused(text):
    with pytest.raises(OperatorError, match=f"LIGHTLLM_SCRAPE_SECONDS.*{text}"):
        from_environment({**IMAGE, "LIGHTLLM_SCRAPE_SECONDS": text})
