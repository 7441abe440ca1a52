"""Prometheus metrics: gauges read from the status page at scrape time, histograms of requests.

Names are LightLLM's where it has one for the thing; durations in seconds, lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lightllm_server.api.admission import ServiceRate, read_queue
from lightllm_server.api.in_flight import Flight
from lightllm_server.engine_info import EngineInfo
from lightllm_server.messages import Ended
from lightllm_server.status_page import Field, StatusPage

__all__ = ["Metrics"]

# LightLLM's: 1.5 ms, each half as long again
_DURATIONS = tuple(0.0015 * 1.5**power for power in range(35))
_LENGTHS = tuple(float(2**power) for power in range(21))

_ROUTER_GAUGES = (
    ("lightllm_batch_current_size", "Requests running", Field.RUNNING),
    ("lightllm_batch_current_rows", "Sequences running (samples)", Field.RUNNING_ROWS),
    ("lightllm_batch_pause_size", "Requests preempted and waiting", Field.PREEMPTED_WAITING),
    ("lightllm_max_running", "Most sequences that may run at once", Field.MAX_RUNNING),
    ("lightllm_kv_tokens_total", "KV cache slots", Field.SLOTS_TOTAL),
    ("lightllm_kv_tokens_used", "KV cache slots that requests hold", Field.SLOTS_USED),
    ("lightllm_kv_tokens_cached", "KV cache slots free for reuse (prefixes)", Field.SLOTS_CACHED),
    ("lightllm_kv_tokens_peak", "KV cache slots that the policy foresees", Field.SLOTS_PEAK),
    ("lightllm_batch_current_max_tokens", "KV cache slots in use", Field.SLOTS_USED),
)
_ROUTER_COUNTERS = (
    ("lightllm_preemptions", "Requests preempted", Field.PREEMPTIONS, 1.0),
    ("lightllm_recomputed_tokens", "Tokens computed again", Field.RECOMPUTED_TOKENS, 1.0),
    ("lightllm_prefix_query_tokens", "Prompt tokens looked up", Field.PREFIX_QUERY_TOKENS, 1.0),
    ("lightllm_prefix_hit_tokens", "Prompt tokens found cached", Field.PREFIX_HIT_TOKENS, 1.0),
    ("lightllm_prompt_tokens", "Prompt tokens of requests run", Field.PROMPT_TOKENS, 1.0),
    ("lightllm_generation_tokens", "Tokens generated", Field.GENERATED_TOKENS, 1.0),
    ("lightllm_steps", "Model steps", Field.STEPS, 1.0),
    ("lightllm_step_seconds", "Time in model steps", Field.STEP_TIME_NS, 1e-9),
    ("lightllm_plan_seconds", "Time planning steps", Field.PLAN_TIME_NS, 1e-9),
)


class _PageCollector(Collector):
    """Everything that is a number on the status page at this moment."""

    def __init__(self, page: StatusPage, not_ready: Callable[[], str | None]) -> None:
        self._page = page
        self._not_ready = not_ready

    def collect(self) -> Iterator[Metric]:
        api, router = self._page["api"], self._page["router"]
        queue = read_queue(api, router)
        yield GaugeMetricFamily(
            "lightllm_queue_size", "Requests accepted and not running", queue.num_requests
        )
        yield GaugeMetricFamily(
            "lightllm_queue_tokens", "Prompt tokens of requests that never ran", queue.num_tokens
        )
        yield GaugeMetricFamily(
            "lightllm_http_in_flight", "HTTP requests under way", api[Field.IN_FLIGHT_HTTP]
        )
        yield GaugeMetricFamily(
            "lightllm_ready", "1 while new requests should come", int(self._not_ready() is None)
        )
        total = router[Field.SLOTS_TOTAL]
        yield GaugeMetricFamily(
            "lightllm_kv_usage_ratio",
            "Share of the KV cache that requests hold, 0 to 1",
            router[Field.SLOTS_USED] / total if total else 0.0,
        )
        for name, help_text, field in _ROUTER_GAUGES:
            yield GaugeMetricFamily(name, help_text, router[field])
        yield from self._counters()

    def _counters(self) -> Iterator[Metric]:
        api, router = self._page["api"], self._page["router"]
        yield CounterMetricFamily(
            "lightllm_request_count", "Requests accepted", api[Field.ACCEPTED]
        )
        yield CounterMetricFamily(
            "lightllm_request_rejected", "Requests refused with 429", api[Field.REJECTED_429]
        )
        for name, help_text, field, unit in _ROUTER_COUNTERS:
            yield CounterMetricFamily(name, help_text, router[field] * unit)
        rejected = CounterMetricFamily(
            "lightllm_rejected_frames", "Malformed messages dropped", labels=["process"]
        )
        for row in self._page.rows.values():
            rejected.add_metric([row.name], row[Field.REJECTED_FRAMES])
        yield rejected


class Metrics:
    """The registry; implements `in_flight.FlightObserver`."""

    def __init__(
        self, page: StatusPage, not_ready: Callable[[], str | None], rate: ServiceRate
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_PageCollector(page, not_ready))
        self._rate = rate
        self._outcomes = {"finished": 0, "failed": 0, "aborted": 0}
        self._registry.register(_OutcomeCollector(self._outcomes))
        self._engine = Info("lightllm_engine", "What the engine chose", registry=self._registry)
        self._duration = self._histogram("duration", "From arrival to the end", _DURATIONS)
        self._validation = self._histogram(
            "validation_duration", "Reading, checking and tokenizing", _DURATIONS
        )
        self._queue = self._histogram("queue_duration", "From acceptance to running", _DURATIONS)
        self._service = self._histogram(
            "service_duration", "From running to the end, without the queue", _DURATIONS
        )
        self._inference = self._histogram(
            "inference_duration", "From acceptance to the end, with the queue", _DURATIONS
        )
        self._first_token = self._histogram(
            "first_token_duration", "From arrival to the first token (TTFT)", _DURATIONS
        )
        self._per_token = self._histogram(
            "mean_time_per_token_duration", "Mean time per further token (TPOT)", _DURATIONS
        )
        self._input = self._histogram("input_length", "Prompt tokens", _LENGTHS)
        self._generated = self._histogram("generated_tokens", "Tokens generated", _LENGTHS)
        self._wanted = self._histogram("max_new_tokens", "Most tokens asked for", _LENGTHS)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"lightllm_request_{name}", help_text, buckets=buckets, registry=self._registry
        )

    def set_engine(self, info: EngineInfo) -> None:
        """Once it is loaded."""
        reason = info.kv_dtype_reason
        self._engine.info({"kv_dtype": info.kv_dtype, "kv_dtype_reason": reason})

    def ended(self, flight: Flight, ended: Ended, now_ns: int) -> None:
        """Record one request's end."""
        self._rate.ended()
        self._outcomes[ended.outcome] += 1
        self._validation.observe((flight.accepted_ns - flight.arrived_ns) * 1e-9)
        self._input.observe(flight.num_prompt_tokens)
        self._wanted.observe(flight.max_new_tokens)
        if ended.outcome != "finished":
            return
        self._duration.observe((now_ns - flight.arrived_ns) * 1e-9)
        self._inference.observe((now_ns - flight.accepted_ns) * 1e-9)
        self._generated.observe(flight.num_generated)
        if ended.started_ns:
            self._queue.observe(max(0, ended.started_ns - flight.accepted_ns) * 1e-9)
            self._service.observe(max(0, now_ns - ended.started_ns) * 1e-9)
        if flight.first_token_ns:
            self._first_token.observe((flight.first_token_ns - flight.arrived_ns) * 1e-9)
            further = flight.num_generated // flight.num_choices - 1
            if further > 0:
                self._per_token.observe((now_ns - flight.first_token_ns) * 1e-9 / further)

    def render(self) -> bytes:
        """The exposition text of this moment."""
        return generate_latest(self._registry)


class _OutcomeCollector(Collector):
    def __init__(self, outcomes: dict[str, int]) -> None:
        self._outcomes = outcomes

    def collect(self) -> Iterator[Metric]:
        for name, outcome, help_text in (
            ("success", "finished", "Requests that finished"),
            ("failure", "failed", "Requests that failed in the engine"),
            ("aborted", "aborted", "Requests whose client left, or that a shutdown ended"),
        ):
            yield CounterMetricFamily(
                f"lightllm_request_{name}", help_text, self._outcomes[outcome]
            )
