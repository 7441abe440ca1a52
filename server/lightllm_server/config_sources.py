"""Where the configuration comes from: option > environment > file > default, and what contradicts.

Lives here: merging the sources into one `ServerConfig`. Not here: the single option (`options.py`),
what depends on the model (`check.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lightllm_server.config import ServerConfig
from lightllm_server.errors import ConfigError
from lightllm_server.options import GROUPS, Option, all_options

__all__ = ["CONFIG_VARIABLE", "build_config"]

CONFIG_VARIABLE = "LIGHTLLM_CONFIG"
_PREFIX = "LIGHTLLM_"


def build_config(
    given: Mapping[str, str | bool], environment: Mapping[str, str], file: str | None = None
) -> ServerConfig:
    """The configuration of one server.

    given: options of the command line by field name; `file`: the value of `--config`, before which
    `LIGHTLLM_CONFIG` of `environment` steps back. Raises ConfigError for an unknown key, a bad
    value, a contradiction and a missing `--model-dir`, by a message that names it.
    """
    options = all_options()
    path = file or environment.get(CONFIG_VARIABLE)
    values: dict[str, Any] = {}
    if path:
        values |= _from_file(Path(path), options)
    values |= _from_environment(environment, options)
    values |= {name: options[name].parse(text, options[name].flag) for name, text in given.items()}
    config = _assemble(options, values)
    _refuse_contradictions(config)
    return config


def _from_file(path: Path, options: Mapping[str, Option]) -> dict[str, Any]:
    # only here: the check and the help of the command line do without it
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path}: not valid YAML: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected `option: value` lines")
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in options:
            raise ConfigError(f"--config {path}: unknown key {key!r}{_hint(name, options, '')}")
        if name in values:
            raise ConfigError(f"--config {path}: {key!r} is given twice")
        values[name] = options[name].parse(value, f"--config {path}: {key}")
    return values


def _from_environment(
    environment: Mapping[str, str], options: Mapping[str, Option]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        name = variable.removeprefix(_PREFIX).lower()
        if name not in options or options[name].variable != variable:
            hint = _hint(name, options, _PREFIX)
            raise ConfigError(f"{variable}: unknown environment variable{hint}")
        try:
            values[name] = options[name].parse(text, variable)
        except ConfigError as error:
            if not text.startswith("tcp://"):
                raise
            # kubelet sets LIGHTLLM_PORT=tcp://… for a Service that is called "lightllm"
            advice = "set by a Kubernetes Service link: use enableServiceLinks: false"
            raise ConfigError(f"{error} ({advice})") from error
    return values


def _hint(name: str, options: Mapping[str, Option], prefix: str) -> str:
    near = get_close_matches(name, options, n=1)
    if not near:
        return ""
    return f"; did you mean {options[near[0]].variable if prefix else near[0]}?"


def _assemble(options: Mapping[str, Option], values: Mapping[str, Any]) -> ServerConfig:
    groups: dict[str, Any] = {}
    for group, owner, _ in GROUPS:
        chosen = {name: value for name, value in values.items() if options[name].group == group}
        groups[group] = owner(**chosen)
    return ServerConfig(**groups)


def _refuse_contradictions(config: ServerConfig) -> None:
    """Raise ConfigError for options that are fine alone and not together."""
    engine, http, router = config.engine, config.http, config.router
    if not engine.model_dir:
        raise ConfigError("--model-dir is required: a Hugging Face model directory")
    if http.metrics_port == http.port:
        raise ConfigError(f"--metrics-port {http.metrics_port} contradicts --port: equal ports")
    if http.drain_delay > http.drain_time:
        raise ConfigError(
            f"--drain-delay {http.drain_delay:g} contradicts --drain-time {http.drain_time:g}: "
            "the delay is a part of the drain time"
        )
    if engine.weight_dtype != "auto" and engine.device == "cuda":
        raise ConfigError(
            f"--weight-dtype {engine.weight_dtype} contradicts --device cuda: it is CPU only"
        )
    slots, longest = engine.max_total_token_num, router.max_req_total_len
    if slots is not None and longest is not None and longest > slots:
        raise ConfigError(
            f"--max-req-total-len {longest} contradicts --max-total-token-num {slots}: "
            "the longest request does not fit into the KV cache"
        )
