"""The command line of `lightllm-server`: serve (the default), `check`, `fetch`.

Lives here: argparse over `options.py`, exit codes and the one-line error. No torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lightllm_server.config_sources import CONFIG_VARIABLE, build_config
from lightllm_server.errors import EXIT_CONFIG, ConfigError
from lightllm_server.options import GROUPS, Option, all_options
from lightllm_server.version import version

__all__ = ["main"]

_DESCRIPTION = """\
LightLLM for Kubernetes: serve a Hugging Face model over HTTP.

  lightllm-server --model-dir DIR [options]     serve
  lightllm-server check --model-dir DIR         read config files and weight headers, print JSON
  lightllm-server fetch --uri URI --target DIR  download a model from a hub or from S3
"""
_EPILOG = f"""\
Every option may also stand in the file of --config (`max-total-token-num: 4096`) or in the
environment (LIGHTLLM_MAX_TOTAL_TOKEN_NUM, {CONFIG_VARIABLE} for the file). An option wins over the
environment, the environment over the file. `-` and `_` are the same in option names.

Exit codes: 0 after SIGTERM or SIGINT, 78 when options or model cannot be served (a restart will not
help), 70 when a process of the server died.
"""


class _Parser(argparse.ArgumentParser):
    """Errors become ConfigError, so that they end like every other wrong configuration."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _help(option: Option) -> str:
    if option.default in (None, "", False):
        return option.help.replace("%", "%%")
    return f"{option.help.replace('%', '%%')} (default: {option.default})"


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    if option.kind is bool:
        group.add_argument(
            option.flag,
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=_help(option),
        )
        return
    names = {int: "N", float: "X", str: "TEXT"}
    shown = "{" + ",".join(option.choices) + "}" if option.choices else names[option.kind]
    group.add_argument(
        option.flag,
        dest=option.name,
        default=argparse.SUPPRESS,
        metavar=option.metavar or shown,
        help=_help(option),
    )


def _serve_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lightllm-server",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        usage="lightllm-server --model-dir DIR [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"lightllm-server {version()}")
    parser.add_argument("--config", metavar="FILE", help="YAML file with options")
    options = all_options().values()
    for name, _, title in GROUPS:
        group = parser.add_argument_group(title)
        for option in options:
            if option.group == name:
                _add_option(group, option)
    return parser


def _check_parser() -> argparse.ArgumentParser:
    options = all_options()
    parser = _Parser(
        prog="lightllm-server check",
        description="Read a model's config files and safetensors headers; print one JSON object. "
        "Exit code 0, or 78 with the reasons in `errors`.",
        allow_abbrev=False,
    )
    model_dir, kv_dtype, tp = options["model_dir"], options["kv_dtype"], options["tp"]
    parser.add_argument(model_dir.flag, metavar="DIR", required=True, help=model_dir.help)
    parser.add_argument("--gpus", metavar="N", default="1", help="GPUs per server (default: 1)")
    parser.add_argument(tp.flag, metavar="N", help="tensor-parallel ranks that must be possible")
    parser.add_argument(kv_dtype.flag, default="auto", metavar="TEXT", help=kv_dtype.help)
    return parser


def _fetch_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lightllm-server fetch",
        description="Download a model's config, tokenizer and weights. What is there already is "
        "not fetched again, also after a kill. The last line says what was done or why it failed, "
        "as JSON. Exit codes: 0, 66 not found, 73 no space, 75 failed (try again), 77 refused.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--uri", required=True, help="hf://org/name or s3://bucket/prefix")
    add("--target", metavar="DIR", type=Path, required=True, help="made if need be")
    add("--revision", metavar="NAME", help="branch, tag or commit of the hub (default: main)")
    add("--token-file", metavar="FILE", type=Path, help="the hub's token")
    keys = "has files AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    add("--credentials-dir", metavar="DIR", type=Path, help=keys)
    add("--endpoint", metavar="URL", help="of the hub or of S3; else HF_ENDPOINT, AWS_ENDPOINT_URL")
    add("--headers-only", action="store_true", help="of weights only what `check` reads")
    add("--progress-port", metavar="N", type=int, help="serve GET /progress there")
    add(
        "--termination-log",
        metavar="FILE",
        type=Path,
        default=Path("/dev/termination-log"),
        help="gets the last line too, if it exists (default: %(default)s)",
    )
    return parser


def _dashes(arguments: Sequence[str]) -> list[str]:
    """Turn `--max_total_token_num=8` into `--max-total-token-num=8`; values stay as they are."""
    result = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
        result.append(name + equals + value)
    return result


def _check(arguments: Sequence[str]) -> int:
    from lightllm_server import check

    options = all_options()
    parsed = _check_parser().parse_args(_dashes(arguments))
    report = check.check(
        parsed.model_dir,
        gpus=options["tp"].parse(parsed.gpus, "--gpus"),
        tp=None if parsed.tp is None else options["tp"].parse(parsed.tp, "--tp"),
        kv_dtype=options["kv_dtype"].parse(parsed.kv_dtype, "--kv-dtype"),
    )
    sys.stdout.write(report.to_json() + "\n")
    return EXIT_CONFIG if report.errors else 0


def _fetch(arguments: Sequence[str]) -> int:
    from lightllm_server.fetch.command import FetchOptions, fetch

    return fetch(FetchOptions(**vars(_fetch_parser().parse_args(_dashes(arguments)))))


def _serve(arguments: Sequence[str]) -> int:
    given = vars(_serve_parser().parse_args(_dashes(arguments)))
    file = given.pop("config")
    config = build_config(given, os.environ, file)
    from lightllm_server import supervisor

    return supervisor.serve(config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. A ConfigError is one line on stderr and 78."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["check"]:
            return _check(words[1:])
        if words[:1] == ["fetch"]:
            return _fetch(words[1:])
        return _serve(words)
    except ConfigError as error:
        sys.stderr.write(f"lightllm-server: error: {error}\n")
        return EXIT_CONFIG
