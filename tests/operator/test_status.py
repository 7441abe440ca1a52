"""The conditions that a person reads, from what pods and Deployment show."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lightllm_operator.autoscale import Decision
from lightllm_operator.errors import RefusedError
from lightllm_operator.facts import DownloadProgress, ModelFacts, Pinned
from lightllm_operator.pods import (
    PodProblem,
    fetching_address,
    find_problem,
    waits_for_volumes_since,
)
from lightllm_operator.sizing import KvChoice
from lightllm_operator.status import Observation, summarise
from lightllm_operator.transitions import transitions
from operator_objects import pod_of, spec_of

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
MODEL = ModelFacts(family="llama", heads=12, kv_heads=4, valid_tp=(1, 2, 4))


def pinned(size=1):
    return Pinned(
        template_version=1,
        image="i",
        spec_hash="0",
        tensor_parallel_size=size,
        kv_dtype="int8",
        kv_reason="",
    )


def observation(**fields):
    given = {"spec": spec_of(), "desired": 1, "model": MODEL, "pinned": pinned(), **fields}
    return Observation(**given)


def condition(status, kind):
    [found] = [c for c in status["conditions"] if c["type"] == kind]
    return found


def conditions_of(seen):
    return {c["type"]: (c["status"], c["reason"]) for c in summarise(seen, {}, NOW)["conditions"]}


def unschedulable(message):
    return pod_of(
        "p0",
        conditions=[
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
                "lastTransitionTime": NOW,
            }
        ],
    )


def container(**state):
    return pod_of("p0", containerStatuses=[{"image": "i", "restartCount": 1, **state}])


SAID = json.dumps({"level": "error", "message": "config.json: no such file"})


@pytest.mark.parametrize(
    ("pod", "reason", "says"),
    [
        (
            unschedulable("1 Insufficient nvidia.com/gpu."),
            "GPUsUnavailable",
            "gpu.count",
        ),
        (unschedulable("1 Insufficient memory."), "Unschedulable", "kubectl describe"),
        (
            container(state={"waiting": {"reason": "ImagePullBackOff", "message": "denied"}}),
            "ImagePullFailed",
            "spec.image",
        ),
        (
            container(state={"waiting": {"reason": "CreateContainerConfigError", "message": "x"}}),
            "SecretNotFound",
            "Secret",
        ),
        (
            container(lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}}),
            "OutOfMemory",
            "limits.memory",
        ),
        (
            container(state={"terminated": {"exitCode": 78, "message": f"x\n{SAID}\n"}}),
            "CrashLoopBackOff",
            "config.json: no such file; the server refuses",
        ),
        (
            container(state={"terminated": {"exitCode": 70, "message": ""}}),
            "CrashLoopBackOff",
            "kubectl logs --previous p0",
        ),
    ],
)
def test_what_is_wrong_with_a_pod_is_said_with_the_next_step(pod, reason, says):
    problem = find_problem([pod])
    assert problem is not None
    assert problem.reason == reason
    assert says in problem.message
    assert "p0" in problem.message
    shown = conditions_of(observation(pods=[pod]))
    assert shown["Available"] == shown["Ready"] == ("False", reason)


QUOTA = 'pods "demo-1" is forbidden: exceeded quota: small, requested: pods=1, limited: pods=1'


@pytest.mark.parametrize(
    "failure",
    [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": QUOTA},
        {
            "type": "Progressing",
            "status": "False",
            "reason": "ReplicaSetCreateError",
            "message": QUOTA,
        },
    ],
)
@pytest.mark.parametrize("num_ready", [0, 1])
def test_pods_that_are_refused_are_told_with_the_cause(failure, num_ready):
    deployment = {
        "metadata": {"name": "demo", "generation": 1},
        "spec": {},
        "status": {"conditions": [failure]},
    }
    ready = [pod_of("p0", ready=True)][:num_ready]
    status = summarise(observation(deployment=deployment, desired=2, pods=ready), {}, NOW)
    told = condition(status, "Available")
    assert told["reason"] == ("MinimumReplicasAvailable" if num_ready else "PodsRefused")
    assert f"deployment demo: {QUOTA}; a quota" in told["message"]


def test_a_pod_that_starts_is_no_problem():
    assert find_problem([pod_of("p0")]) is None
    shown = conditions_of(observation(pods=[pod_of("p0")]))
    assert shown["Ready"] == ("False", "Progressing")
    assert shown["Available"] == ("False", "NoReadyReplicas")


def test_a_deployment_serves():
    status = summarise(observation(pods=[pod_of("p0", ready=True)]), {}, NOW)
    assert condition(status, "Ready")["reason"] == "Serving"
    assert (status["readyReplicas"], status["desiredReplicas"]) == (1, 1)
    assert status["url"] == "http://demo.default.svc"


def test_a_refused_edit_says_so_while_the_old_pods_serve():
    refused = RefusedError("InvalidTensorParallel", "spec.tensorParallelSize: got 3")
    seen = observation(refused=refused, pods=[pod_of("p0", ready=True)])
    status = summarise(seen, {}, NOW)
    assert condition(status, "ConfigValid")["reason"] == "InvalidTensorParallel"
    ready = condition(status, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ConfigInvalid")
    assert "1 pods of the earlier spec go on serving" in ready["message"]


def test_idle_gpus_are_said():
    seen = observation(spec=spec_of(gpu={"count": 4}), pinned=pinned(3))
    told = condition(summarise(seen, {}, NOW), "GPUsUnderused")
    assert told["status"] == "True"
    assert "1 of 4 GPUs" in told["message"]


@pytest.mark.parametrize(
    ("spec", "desired", "reason"),
    [({"suspend": True}, 0, "Suspended"), ({"replicas": 0}, 0, "ScaledToZero")],
)
def test_no_pods_are_wanted(spec, desired, reason):
    shown = conditions_of(observation(spec=spec_of(**spec), desired=desired))
    assert shown["Ready"] == ("False", reason)


@pytest.mark.parametrize(
    ("decision", "active", "limited"),
    [
        (Decision(replicas=2), ("True", "ReadyForScaling"), ("False", "WithinRange")),
        (
            Decision(replicas=2, held="MetricsUnavailable"),
            ("False", "MetricsUnavailable"),
            ("False", "WithinRange"),
        ),
        (
            Decision(replicas=2, held="StartupHold"),
            ("True", "StartupHold"),
            ("False", "WithinRange"),
        ),
        (
            Decision(replicas=2, limited="RateLimited"),
            ("True", "ReadyForScaling"),
            ("True", "RateLimited"),
        ),
    ],
)
def test_scaling_tells_its_story(decision, active, limited):
    spec = spec_of(autoscaling={"maxReplicas": 3})
    shown = conditions_of(observation(spec=spec, decision=decision, desired=2))
    assert shown["ScalingActive"] == active
    assert shown["ScalingLimited"] == limited


def test_a_transition_keeps_its_time_until_the_status_changes():
    waiting = observation(pods=[pod_of("p0")])
    first = summarise(waiting, {}, NOW)
    assert summarise(waiting, first, LATER) == first
    serving = summarise(observation(pods=[pod_of("p0", ready=True)]), first, LATER)
    assert condition(serving, "Ready")["lastTransitionTime"] == LATER
    assert condition(serving, "ConfigValid")["lastTransitionTime"] == NOW


def test_events_mirror_transitions_and_nothing_else():
    before = summarise(observation(pods=[pod_of("p0")]), {}, NOW)
    after = summarise(observation(pods=[pod_of("p0", ready=True)]), before, LATER)
    reasons = [(kind, reason) for kind, reason, _ in transitions(before, after)]
    assert reasons == [("Normal", "Serving")]
    assert transitions(after, after) == []
    lost = summarise(
        observation(pods=[container(state={"terminated": {"exitCode": 78}})]), after, LATER
    )
    reasons = [(kind, reason) for kind, reason, _ in transitions(after, lost)]
    assert reasons == [("Warning", "CrashLoopBackOff")]


def test_a_start_without_problems_makes_no_events():
    spec = spec_of(gpu={"count": 1}, autoscaling={"maxReplicas": 3})
    status, reasons = {}, []
    for seen in (
        Observation(spec=spec, desired=1),
        observation(spec=spec, pods=[pod_of("p0")]),
        observation(spec=spec, pods=[pod_of("p0", ready=True)]),
        observation(spec=spec, pods=[pod_of("p0", ready=True)], decision=Decision(replicas=1)),
    ):
        after = summarise(seen, status, NOW)
        reasons += [(kind, reason) for kind, reason, _ in transitions(status, after)]
        status = after
    assert reasons == [("Normal", "Serving")]


def test_a_small_load_that_comes_and_goes_makes_no_events():
    spec = spec_of(autoscaling={"minReplicas": 2, "maxReplicas": 3})
    serving = [pod_of(name, ready=True) for name in ("p0", "p1")]
    status, reasons = {}, []
    for limited in ("", "TooFewReplicas", "", "TooFewReplicas", "RateLimited", ""):
        decision = Decision(replicas=2, limited=limited)
        seen = observation(spec=spec, desired=2, pods=serving, decision=decision)
        after = summarise(seen, status, NOW)
        reasons += [reason for _, reason, _ in transitions(status, after)]
        status = after
    assert reasons == ["Serving", "RateLimited", "WithinRange"]


def test_a_start_with_a_problem_tells_it():
    refused = RefusedError("InvalidTensorParallel", "got 3")
    status = summarise(observation(refused=refused, pinned=None), {}, NOW)
    reasons = {(kind, reason) for kind, reason, _ in transitions({}, status)}
    assert ("Warning", "InvalidTensorParallel") in reasons


def test_after_a_restart_scaling_is_told_as_before_until_the_first_scrape():
    spec = spec_of(autoscaling={"maxReplicas": 3})
    decision = Decision(replicas=1, waiting=7, limited="RateLimited")
    before = summarise(observation(spec=spec, decision=decision), {}, NOW)
    assert summarise(observation(spec=spec), before, LATER) == before
    # autoscaling was switched on just now
    off = summarise(observation(), {}, NOW)
    now_on = summarise(observation(spec=spec), off, LATER)
    assert condition(now_on, "ScalingActive")["reason"] == "Starting"


def fetching(reason="", **state):
    """A pod whose init container fetches, or has ended with that reason."""
    if reason:
        said = json.dumps({"reason": reason, "message": "the cause"})
        state = {"terminated": {"exitCode": 77, "message": said}}
    statuses = [{"name": "fetch", "image": "i", "restartCount": 0, "state": state}]
    return pod_of("p0", initContainerStatuses=statuses, podIP="10.0.0.9")


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("AuthenticationFailed", "spec.model.tokenSecretRef"),
        ("NotFound", "spec.model.uri"),
        ("InsufficientStorage", "spec.cache.size"),
        ("DownloadFailed", "tried again"),
    ],
)
def test_what_the_fetch_said_is_lifted(reason, says):
    problem = find_problem([fetching(reason)])
    assert problem.reason == reason
    assert "the cause" in problem.message
    assert says in problem.message
    shown = conditions_of(observation(model=None, check_problem=problem, pinned=None))
    assert shown["ModelAvailable"] == ("False", reason)
    assert shown["Ready"] == ("False", reason)


def test_a_fetch_that_has_ended_well_is_no_problem():
    assert find_problem([fetching(terminated={"exitCode": 0, "message": "{}"})]) is None


def test_where_the_progress_is_asked_for():
    assert fetching_address(fetching(running={})) == "10.0.0.9"
    assert fetching_address(fetching(terminated={"exitCode": 0})) is None
    assert fetching_address(pod_of("p0", ready=True)) is None


def test_while_a_model_is_looked_at_again_the_verdict_stands():
    serving = [pod_of("p0", ready=True)]
    refused = RefusedError("UnsupportedModel", "its attention is unknown")
    told = summarise(observation(refused=refused, pods=serving), {}, NOW)
    again = observation(model=None, pods=serving)
    assert summarise(again, told, LATER)["conditions"] == told["conditions"]
    assert transitions(told, summarise(again, told, LATER)) == []
    # the new verdict, a fault of the new check, or another spec
    assert condition(summarise(observation(pods=serving), told, LATER), "Ready")["status"] == "True"
    problem = PodProblem("NotFound", "it is gone")
    gone = observation(model=None, check_problem=problem, pods=serving)
    assert condition(summarise(gone, told, LATER), "ModelAvailable")["reason"] == "NotFound"
    edited = replace(again, spec=replace(spec_of(), generation=2))
    assert condition(summarise(edited, told, LATER), "ConfigValid")["reason"] == "Checking"


def test_a_model_that_could_not_be_read_stays_so_until_bytes_come():
    def again(**download):
        progress = DownloadProgress(pod="p1", **download) if download else None
        return observation(model=None, pinned=None, download=progress)

    problem = PodProblem("NotFound", "no such repository")
    told = summarise(observation(model=None, check_problem=problem, pinned=None), {}, NOW)
    for waiting in (again(), again(done=0), again(total=4_000_000)):
        assert transitions(told, summarise(waiting, told, LATER)) == []
    news = summarise(again(done=1, total=4_000_000), told, LATER)
    assert condition(news, "ModelAvailable")["reason"] == "Downloading"


def test_without_a_deployment_available_names_what_it_waits_for():
    seen = Observation(spec=spec_of(), desired=1)
    assert "ModelAvailable" in condition(summarise(seen, {}, NOW), "Available")["message"]


def test_a_download_tells_how_far_it_is():
    download = DownloadProgress(pod="p0", done=512_000_000, total=2_048_000_000)
    status = summarise(observation(model=None, pinned=None, download=download), {}, NOW)
    told = condition(status, "ModelAvailable")
    assert (told["status"], told["reason"]) == ("Unknown", "Downloading")
    assert "25 %, 512 of 2048 MB" in told["message"]
    ready = condition(status, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Downloading")
    told = [(kind, reason) for kind, reason, _ in transitions({}, status)]
    assert told.count(("Normal", "Downloading")) == 1
    assert ("Warning", "Downloading") not in told


def test_a_pod_that_fetches_for_itself_tells_too():
    download = DownloadProgress(pod="p0", done=1_000_000, total=4_000_000)
    status = summarise(observation(pods=[fetching(running={})], download=download), {}, NOW)
    assert "pod p0 fetches the model: 25 %" in condition(status, "Available")["message"]


@pytest.mark.parametrize(
    ("scheduled", "started", "since"),
    [("True", "False", 1767225600.0), ("True", "True", None), ("False", "False", None)],
)
def test_since_when_volumes_are_waited_for(scheduled, started, since):
    conditions = [
        {"type": "PodScheduled", "status": scheduled, "lastTransitionTime": NOW},
        {"type": "PodReadyToStartContainers", "status": started, "lastTransitionTime": NOW},
    ]
    assert waits_for_volumes_since(pod_of("p0", conditions=conditions)) == since


def test_the_kv_cache_is_what_the_servers_made_of_auto():
    auto = replace(pinned(), kv_dtype="auto", kv_reason="the server chooses")

    def shown(seen, before):
        status = summarise(seen, before, NOW)
        return status, (status["kvCacheDtype"], status["kvCacheReason"])

    status, kv = shown(observation(pinned=auto), {})
    assert kv == ("auto", "the server chooses")
    chosen = KvChoice("float32", "auto keeps the model's dtype on the CPU")
    status, kv = shown(observation(pinned=auto, kv=chosen), status)
    assert kv == (chosen.dtype, chosen.reason)
    # after a restart of the operator, until it has scraped
    assert shown(observation(pinned=auto), status)[1] == kv
    edited = observation(pinned=auto, spec=replace(spec_of(), generation=2))
    assert shown(edited, status)[1] == ("auto", "the server chooses")
    # what was asked for is what they run with
    assert shown(observation(kv=chosen), {})[1] == ("int8", "")


def test_the_time_of_the_last_scaling_outlives_the_operator_that_did_it():
    spec = spec_of(autoscaling={"maxReplicas": 3})
    known = observation(spec=spec, decision=Decision(replicas=1), last_scale_time=NOW)
    restarted = observation(spec=spec, decision=Decision(replicas=1))
    before = summarise(known, {}, NOW)
    assert summarise(restarted, before, LATER)["autoscaling"]["lastScaleTime"] == NOW
    assert "lastScaleTime" not in summarise(restarted, {}, NOW)["autoscaling"]
