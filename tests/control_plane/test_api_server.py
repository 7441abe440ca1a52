"""The fixture itself: a resource is stored, with the schema's defaults."""

from __future__ import annotations

import pytest

from kube import deployment_of

pytestmark = pytest.mark.slow


def test_the_api_server_knows_our_resource(kubectl):
    kubectl.apply(deployment_of("demo"))
    stored = kubectl.get("lld", "demo")
    assert stored["spec"]["startupTimeoutSeconds"] == 1800
