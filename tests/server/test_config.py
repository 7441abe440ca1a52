"""Sources of the configuration: names, types, bounds, precedence, contradictions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from lightllm_server.config import ServerConfig
from lightllm_server.config_sources import build_config
from lightllm_server.errors import ConfigError
from lightllm_server.options import GROUPS, all_options

MODEL = {"model_dir": "m"}


def refused(given=MODEL, environment=None, file=None) -> str:
    with pytest.raises(ConfigError) as caught:
        build_config(given, environment or {}, file and str(file))
    return str(caught.value)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_defaults_are_those_of_the_fields():
    config = build_config(MODEL, {})
    assert config == ServerConfig(engine=dataclasses.replace(config.engine, model_dir="m"))


def test_option_over_environment_over_file_over_default(tmp_path):
    text = "port: 1001\nmax-n: 2\ntp: 2\nmax_queued_requests: 7\n"
    file = write(tmp_path / "c.yaml", text)
    environment = {"LIGHTLLM_PORT": "1002", "LIGHTLLM_MAX_N": "3", "PATH": "/bin"}
    config = build_config({**MODEL, "port": "1003"}, environment, file)
    assert config.http.port == 1003
    assert config.http.max_n == 3
    assert config.engine.tp == 2
    assert config.router.max_queued_requests == 7
    assert config.http.drain_delay == 10.0


def test_the_file_may_be_named_by_the_environment(tmp_path):
    file = write(tmp_path / "c.yaml", "model-dir: from-file\nprefix_cache: off\nnull-model: true\n")
    config = build_config({}, {"LIGHTLLM_CONFIG": file})
    assert config.engine.model_dir == "from-file"
    # YAML reads `off` as false
    assert config.router.prefix_cache == "off"
    assert config.engine.null_model is True


@pytest.mark.parametrize("group", [owner for _, owner, _ in GROUPS])
def test_every_field_is_an_option_with_help(group):
    options = all_options()
    for item in dataclasses.fields(group):
        option = options[item.name]
        assert option.help
        assert option.flag == "--" + item.name.replace("_", "-")
        if option.kind in (int, float):
            assert option.ge is not None
            assert option.le is not None
            assert option.default is None or option.ge <= option.default <= option.le
        if option.choices:
            assert option.default in option.choices


def test_bounds_are_inclusive_on_every_number():
    for option in all_options().values():
        if option.kind not in (int, float):
            continue
        assert option.parse(option.kind(option.ge), "x") == option.ge
        assert option.parse(str(option.kind(option.le)), "x") == option.le
        for outside in (option.ge - 1, option.le + 1):
            with pytest.raises(ConfigError, match=r"^x: got .*, allowed: .* to "):
                option.parse(option.kind(outside), "x")


@pytest.mark.parametrize("text", ["", "x", "8.5", "1e3", "nan", "0x8", "9" * 5000, "--"])
def test_no_whole_number(text):
    assert refused({**MODEL, "tp": text}).startswith("--tp: got ")


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "-inf", "-0.1", "601"])
def test_no_number_within_bounds(text):
    assert refused({**MODEL, "drain_delay": text}).startswith("--drain-delay: got ")


@pytest.mark.parametrize("value", ["8.5", "true", "[1]", "{a: 1}", "'eight'"])
def test_a_file_with_a_wrong_type_names_file_and_key(tmp_path, value):
    file = write(tmp_path / "c.yaml", f"tp: {value}\n")
    assert refused(file=file).startswith(f"--config {file}: tp: got ")


def test_choices_are_listed():
    message = refused({**MODEL, "dtype": "float8"})
    assert message == "--dtype: got 'float8', allowed: auto, float32, bfloat16, float16"


@pytest.mark.parametrize(("text", "value"), [("1", True), ("false", False), ("Yes", True)])
def test_booleans_of_the_environment(text, value):
    config = build_config(MODEL, {"LIGHTLLM_NULL_MODEL": text})
    assert config.engine.null_model is value


def test_unknown_keys_are_named(tmp_path):
    file = write(tmp_path / "c.yaml", "max_total_token: 8\n")
    message = refused(file=file)
    assert message.startswith(f"--config {file}: unknown key 'max_total_token'")
    assert message.endswith("did you mean max_total_token_num?")
    message = refused(environment={"LIGHTLLM_PROT": "1"})
    assert message == "LIGHTLLM_PROT: unknown environment variable; did you mean LIGHTLLM_PORT?"
    assert refused(environment={"LIGHTLLM_port": "1"}).startswith("LIGHTLLM_port: unknown")


def test_a_service_link_of_kubernetes_is_explained():
    message = refused(environment={"LIGHTLLM_PORT": "tcp://10.0.0.1:8000"})
    assert "enableServiceLinks" in message


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("- a\n- b\n", "expected `option: value` lines"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.getpid []", "not valid YAML"),
        ("tp: 1\ntp_: 2\n", "unknown key 'tp_'"),
        ("max-n: 1\nmax_n: 2\n", "'max_n' is given twice"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, cause):
    file = write(tmp_path / "c.yaml", content)
    message = refused(file=file)
    assert message.startswith(f"--config {file}: ")
    assert cause in message


def test_a_missing_file_is_named(tmp_path):
    assert "No such file" in refused(file=tmp_path / "none.yaml")


def test_an_empty_file_is_no_error(tmp_path):
    assert build_config(MODEL, {}, write(tmp_path / "c.yaml", "")) == build_config(MODEL, {})


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ["--model-dir"]),
        ({"metrics_port": "8000"}, ["--metrics-port", "--port"]),
        ({"drain_delay": "20", "drain_time": "10"}, ["--drain-delay", "--drain-time"]),
        ({"weight_dtype": "int8", "device": "cuda"}, ["--weight-dtype", "--device"]),
        (
            {"max_total_token_num": "100", "max_req_total_len": "101"},
            ["--max-req-total-len", "--max-total-token-num"],
        ),
    ],
)
def test_contradictions_name_the_options(given, names):
    message = refused({**(MODEL if given else {}), **given})
    assert all(name in message for name in names)


def test_a_configuration_survives_the_run_directory():
    config = build_config({**MODEL, "drain_delay": "3", "metrics_port": "9000"}, {})
    assert msgspec.json.decode(msgspec.json.encode(config), type=ServerConfig) == config
