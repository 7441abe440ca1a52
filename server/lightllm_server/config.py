"""The server's configuration, grouped by owner: each default, help text and bound stands here once.

`cli.py` reads options from these fields (`max_total_token_num` is `--max-total-token-num` and
`LIGHTLLM_MAX_TOTAL_TOKEN_NUM`); names follow LightLLM where they mean the same. Nothing is
mutated after construction.
Lives here: what the user may say. Not here: what follows from it (`engine_info.py`, `check.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "EngineConfig",
    "HttpConfig",
    "LogConfig",
    "RouterConfig",
    "ServerConfig",
]


def _option(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    metavar: str | None = None,
) -> Any:
    """A field with its help text and inclusive bounds, for the command line and for validation."""
    metadata = {"help": help, "ge": ge, "le": le, "metavar": metavar}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    host: str = _option("127.0.0.1", "address to listen on", metavar="ADDR")
    port: int = _option(8000, "port of the HTTP API", ge=1, le=65535)
    metrics_port: int | None = _option(
        None, "second port that serves probes and /metrics without a key", ge=1, le=65535
    )
    api_key_file: str | None = _option(
        None,
        "file with one API key per line; the main port then refuses everything else",
        metavar="FILE",
    )
    served_model_name: str | None = _option(
        None, "name under /v1/models (default: the directory's name)", metavar="NAME"
    )
    drain_delay: float = _option(
        10.0, "seconds after SIGTERM in which new requests are still accepted", ge=0, le=600
    )
    drain_time: float = _option(
        120.0, "seconds after SIGTERM until requests still running are ended", ge=0, le=86400
    )
    max_body_bytes: int = _option(
        16 * 2**20, "largest request body; more is a 413", ge=1024, le=2**30
    )
    max_n: int = _option(8, "largest `n` (samples per request)", ge=1, le=128)
    tokenize_workers: int = _option(2, "processes that tokenize and render chats", ge=1, le=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    admission: Literal["efficient", "past-future", "conservative"] = _option(
        "efficient",
        "efficient: LightLLM's peak estimate, expected over the outputs that ended lately; "
        "past-future: the same with lengths drawn from them; conservative: assume max_new_tokens, "
        "never preempt",
    )
    prefix_cache: Literal["per-key", "shared", "off"] = _option(
        "per-key",
        "share the KV of equal prompt prefixes: among requests of one API key, of all, or not",
    )
    running_max_req_size: int = _option(1000, "most sequences in one batch", ge=1, le=65536)
    batch_max_tokens: int | None = _option(
        None,
        "tokens per step, decode rows and prefill chunks (default: measured at start)",
        ge=16,
        le=2**20,
    )
    max_req_total_len: int | None = _option(
        None, "longest prompt + output (default: the model's, at most 16384)", ge=2, le=2**24
    )
    max_queued_requests: int = _option(4096, "requests waiting beyond this get 429", ge=1, le=2**20)
    max_queued_tokens: int = _option(
        2**20, "prompt tokens waiting beyond this get 429", ge=1, le=2**40
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    model_dir: str = _option("", "Hugging Face model directory (required)", metavar="DIR")
    device: Literal["auto", "cuda", "cpu"] = _option(
        "auto", "where the model runs; cuda without CUDA is an error"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option(
        "auto",
        "auto: the model's on CUDA; on CPU bfloat16 if the CPU has bf16 instructions, else float32",
    )
    weight_dtype: Literal["auto", "float16", "int8"] = _option(
        "auto",
        "linear weights on the CPU: float16 (arithmetic stays in the model's dtype) or int8 "
        "(activations quantised per token); auto: float16 where the checkpoint loses nothing by it",
    )
    kv_dtype: Literal["auto", "model", "int8"] = _option(
        "auto", "KV cache: the model's dtype or int8 with one scale per token and head"
    )
    tp: int = _option(1, "tensor-parallel ranks", ge=1, le=64)
    mem_fraction: float = _option(
        0.9, "share of the memory that weights, activations and KV cache may take", ge=0.05, le=1.0
    )
    max_total_token_num: int | None = _option(
        None, "KV cache slots, one per token (default: what fits into memory)", ge=16, le=2**31 - 2
    )
    disable_cudagraph: bool = _option(
        False, "launch every decode step kernel by kernel instead of replaying CUDA graphs"
    )
    graph_max_batch_size: int = _option(
        512, "most rows of a decode step that CUDA graphs are recorded for", ge=1, le=4096
    )
    load_format: Literal["safetensors", "dummy"] = _option(
        "safetensors",
        "dummy: random weights of the shapes in config.json, to measure speed without a checkpoint",
    )
    null_model: bool = _option(
        False, "answer with fixed tokens and no forward pass, to measure everything else"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    log_format: Literal["text", "json"] = _option(
        "text", "one readable line, or one JSON object, per event"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _option(
        "info", "least severity logged"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    engine: EngineConfig
    http: HttpConfig = HttpConfig()
    router: RouterConfig = RouterConfig()
    log: LogConfig = LogConfig()
