"""Resources side by side, each with pods and answers of its own; the end of a namespace."""

from __future__ import annotations

import time

import pytest

from kube import deployment_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ASK = (
    "import json, sys, urllib.request\n"
    "print(json.load(urllib.request.urlopen(sys.argv[1] + '/v1/models'))['data'][0]['id'])"
)


def test_each_answers_by_its_own_name_and_one_deletion_leaves_the_other(kube):
    for name in ("red", "blue"):
        kube.apply(deployment_of(name, gpu={"count": 2}))
    for name in ("red", "blue"):
        kube.wait_condition(name, "Ready", "True", timeout=180)
        url = f"http://{name}.{kube.namespace}.svc"
        assert kube.run_pod(f"ask-{name}", "python", "-c", ASK, url).strip() == name
    before = kube.restarts("blue")
    kube("delete", "lld", "red")
    kube.wait("red's pods are gone", lambda: not kube.serving_pods("red"), 90)
    assert kube.restarts("blue") == before
    assert list(before.values()) == [0]


def test_a_namespace_ends_with_all_that_is_in_it(kube):
    kube.apply(deployment_of("demo"))
    kube.wait_condition("demo", "Ready", "True", timeout=120)
    began = time.monotonic()
    kube("delete", "namespace", kube.namespace, "--timeout=90s")
    # the pods drain: delay, drain time, exit
    assert time.monotonic() - began < 60
    assert kube("get", "namespace", kube.namespace, "--ignore-not-found") == ""
