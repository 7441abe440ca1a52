"""The operator with 1000 resources on a real API server, and how soon it writes a new count.

    .venv/bin/python benchmarks/operator/scale.py [--resources 1000] [--endpoints 500] [--json FILE]

etcd, the API server and the operator are real processes; this one plays the controllers and the
kubelet (`fleet.py`), so no pod runs. Other work on the machine counts against the operator: the
load average stands beside the figures. Figures beyond what is owed are printed as MISSED and do
not change the exit code; an operator that does not converge ends it with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml
from endpoints import addresses
from fleet import NAMESPACE, RESOURCES, Fleet

import operator_process
from lightllm_operator.names import API_VERSION, KIND, METRICS_PORT
from operator_process import Operator
from rest import Rest, RestError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cluster"))

IMAGE = "lightllm-server:bench"
# resources that the latency is measured on at once, each in its own phase
LATENCY_RESOURCES = 10
CONVERGE_TIMEOUT_S = 600.0
IDLE_S = 60.0
TARGET = 4
# name → (owed, aim); each at most
LIMITS = {
    "converge_s": (120.0, 60.0),
    "reconcile_p99_s": (None, 2.0),
    "rss_mb": (300.0, 200.0),
    "scale_written_max_s": (8.0, 7.0),
}

Result = dict[str, float]


def manifest(index: int) -> dict[str, Any]:
    """A resource like examples/demo.yaml, whose count follows the queue without delay."""
    quick = {"stabilizationWindowSeconds": 0, "maxPods": 100, "periodSeconds": 1}
    autoscaling = {"maxReplicas": 2, "targetQueueDepth": TARGET}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name_of(index), "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": "file:///models/demo-model"},
            "gpu": {"count": 1},
            "autoscaling": {**autoscaling, "scaleUp": quick, "scaleDown": quick},
        },
    }


def name_of(index: int) -> str:
    return f"bench-{index:04d}"


async def install(rest: Rest) -> None:
    """The CRD, and a namespace."""
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    path = ROOT / "crds" / "lightllmdeployments.serving.lightllm.io.yaml"
    await rest("POST", crds, yaml.safe_load(path.read_text()))
    await rest("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    for _ in range(100):
        with contextlib.suppress(RestError):
            await rest("GET", RESOURCES)
            return
        await asyncio.sleep(0.1)
    raise TimeoutError("the API server does not serve the CRD's resources after 10 s")


def model_report() -> str:
    """What the check Job says of the demo model: the real command's output."""
    command = [sys.executable, "-m", "lightllm_server", "check", "--gpus", "16", "--model-dir"]
    model = str(ROOT / "examples" / "demo-model")
    return subprocess.run([*command, model], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def metric_endpoints(count: int) -> Iterator[None]:
    script = str(Path(__file__).with_name("endpoints.py"))
    command = [sys.executable, script, str(count), str(METRICS_PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "asked for a pipe"
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the fake metric endpoints do not listen")
            yield
        finally:
            process.terminate()


class Requests:
    """What the operator asks: the API server's own count, less what this process asked."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    async def so_far(self) -> Counter[tuple[str, str]]:
        """(resource, verb) → requests, watches apart."""
        text = await self._rest.text("/metrics")
        counted: Counter[tuple[str, str]] = Counter()
        for line in text.splitlines():
            if line.startswith("apiserver_request_total{"):
                labels, value = line[len("apiserver_request_total{") :].rsplit("} ", 1)
                of = dict(part.split("=", 1) for part in labels.split(","))
                key = of["resource"].strip('"'), of["verb"].strip('"')
                counted[key] += int(float(value))
        counted.subtract(self._rest.asked)
        ours = {resource for resource, _ in self._rest.asked} | {"events", "services", "nodes"}
        ours |= {"poddisruptionbudgets", "leases", "persistentvolumeclaims"}
        return Counter(
            {key: n for key, n in counted.items() if key[0] in ours and key[1] != "WATCH" and n > 0}
        )


async def converge(rest: Rest, fleet: Fleet, resources: int) -> float:
    """Create all; seconds until the condition Ready of each is true."""
    slots = asyncio.Semaphore(16)

    async def create(index: int) -> None:
        async with slots:
            await rest("POST", RESOURCES, manifest(index))

    began = time.monotonic()
    async with asyncio.timeout(CONVERGE_TIMEOUT_S), asyncio.TaskGroup() as tasks:
        for index in range(resources):
            tasks.create_task(create(index))
        async with fleet.changed:
            await fleet.changed.wait_for(lambda: len(fleet.ready) == resources)
    return time.monotonic() - began


async def scale_latencies(fleet: Fleet, repetitions: int) -> list[float]:
    """Seconds from a queue that crosses its target to the watch event of the new count."""
    rng = random.Random(0)
    scraped = [name for name, pods in fleet.pods.items() if all(pods.values())]
    names = scraped[:LATENCY_RESOURCES]
    found: list[float] = []

    async def measure(session: aiohttp.ClientSession, name: str) -> None:
        address = next(iter(fleet.pods[name].values()))

        async def report(waiting: int) -> None:
            async with session.get(f"http://{address}:{METRICS_PORT}/queue/{waiting}"):
                pass

        async def until(replicas: int) -> None:
            async with asyncio.timeout(60), fleet.changed:
                await fleet.changed.wait_for(lambda: fleet.replicas[name] == replicas)

        for _ in range(repetitions // LATENCY_RESOURCES):
            # any phase of the operator's period
            await asyncio.sleep(rng.uniform(3.0, 8.0))
            began = time.monotonic()
            await report(TARGET + 1)
            await until(2)
            found.append(time.monotonic() - began)
            await report(0)
            await until(1)

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(measure(session, name))
    return found


async def idle(operator: Operator, requests: Requests) -> Result:
    """A minute in which nothing changes."""
    before, cpu = await requests.so_far(), operator.cpu_seconds()
    began = time.monotonic()
    await asyncio.sleep(IDLE_S)
    seconds = time.monotonic() - began
    asked = await requests.so_far() - before
    return {
        "idle_requests_per_s": asked.total() / seconds,
        "idle_cpu_percent": 100 * (operator.cpu_seconds() - cpu) / seconds,
        "idle_rss_mb": operator.rss() / 1e6,
    }


def quantile(buckets: dict[float, float], share: float) -> float:
    """As Prometheus' histogram_quantile: linear inside a bucket."""
    wanted, low, below = share * buckets[max(buckets)], 0.0, 0.0
    for bound in sorted(buckets):
        if buckets[bound] >= wanted:
            inside = buckets[bound] - below
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / inside
        low, below = bound, buckets[bound]
    return low


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def measure(kubeconfig: Path, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    spare = addresses(args.endpoints + LATENCY_RESOURCES)
    async with contextlib.AsyncExitStack() as stack:
        rest = await stack.enter_async_context(Rest(kubeconfig))
        await install(rest)
        # the last ones are for the pods that the latency's scaling adds
        fleet = Fleet(rest, model_report(), spare[: args.endpoints])
        await stack.enter_async_context(fleet)
        log = folder / "operator.log"
        operator = await stack.enter_async_context(operator_process.running(kubeconfig, IMAGE, log))
        await asyncio.sleep(5.0)
        requests = Requests(rest)
        before, cpu = await requests.so_far(), operator.cpu_seconds()
        load = [os.getloadavg()[0]]
        result: Result = {"converge_s": await converge(rest, fleet, args.resources)}
        print(f"converged after {result['converge_s']:.1f} s", file=sys.stderr)
        result["converge_cpu_s"] = operator.cpu_seconds() - cpu
        asked = await requests.so_far() - before
        result["requests_per_resource"] = asked.total() / args.resources
        buckets = await operator.reconciles()
        result["reconcile_p50_s"] = quantile(buckets, 0.5)
        result["reconcile_p99_s"] = quantile(buckets, 0.99)
        fleet.add_addresses(spare[args.endpoints :])
        await asyncio.sleep(30.0)
        print("an idle minute …", file=sys.stderr)
        result |= await idle(operator, requests)
        print("latencies …", file=sys.stderr)
        latencies = await scale_latencies(fleet, args.repetitions)
        result["scale_written_p50_s"] = percentile(latencies, 0.5)
        result["scale_written_p95_s"] = percentile(latencies, 0.95)
        result["scale_written_max_s"] = max(latencies)
        result["rss_mb"] = operator.peak_rss / 1e6
        load.append(os.getloadavg()[0])
        faults = log.read_text().count("Traceback")
    return {
        "commit": commit(),
        "machine": machine(),
        "resources": args.resources,
        "endpoints": args.endpoints,
        "repetitions": len(latencies),
        "load_before": load[0],
        "load_after": load[1],
        "tracebacks": faults,
        **result,
        "requests": {f"{verb} {resource}": n for (resource, verb), n in asked.most_common()},
    }


def commit() -> str:
    """The checkout's, with a + where it has changes."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    return told.stdout.strip() or "unknown"


def machine() -> str:
    """Its processor, cores and memory."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    memory = psutil.virtual_memory().total / 2**30
    name = model[1] if model else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB"


def print_result(result: dict[str, Any]) -> None:
    print(f"commit {result['commit']}, {result['machine']}")
    print(
        f"{result['resources']} resources, {result['endpoints']} fake metric endpoints, "
        f"load average {result['load_before']:.1f} before and {result['load_after']:.1f} after, "
        f"{result['tracebacks']} tracebacks in the log"
    )
    for name, value in result.items():
        if not isinstance(value, float) or name.startswith("load"):
            continue
        owed, aim = LIMITS.get(name, (None, None))
        verdict = ""
        if aim is not None:
            verdict = f"aim {aim:g} " + ("met" if value <= aim else "not met")
        if owed is not None:
            verdict = f"owed {owed:g} " + ("met" if value <= owed else "MISSED") + f", {verdict}"
        print(f"  {name:<24}{value:>10.3f}   {verdict}")
    print("\nfrom a queue that crosses its target to the count written, seconds")
    print(f"  {'':<28}{'p50':>8}{'p95':>8}{'max':>8}")
    ours = [result[f"scale_written_{share}_s"] for share in ("p50", "p95", "max")]
    rows = [(f"measured, {result['repetitions']} times", ours)]
    # a change at a random moment of the period, and a decision that takes no time
    for peer, period in (("HPA", 15.0), ("KEDA, cached metrics", 30.0)):
        rows.append((f"{peer}: period {period:g} s", [0.5 * period, 0.95 * period, period]))
    for label, values in rows:
        print(f"  {label:<28}" + "".join(f"{value:>8.1f}" for value in values))
    print("  (peers: computed from their periods alone, not measured)")
    print("\nrequests of the operator until all had converged, watches apart")
    for what, number in result["requests"].items():
        print(f"  {what:<36}{number:>8}  {number / result['resources']:>6.2f} per resource")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resources", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--keep", type=Path, help="keep the logs, in this new folder")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    import api_server  # lies beside the tests

    with contextlib.ExitStack() as stack:
        stack.enter_context(metric_endpoints(args.endpoints + LATENCY_RESOURCES))
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=args.keep is None)
        kubeconfig = stack.enter_context(api_server.running(folder))
        result = asyncio.run(measure(kubeconfig, folder, args))
    print_result(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
