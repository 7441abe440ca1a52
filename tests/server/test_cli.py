"""The command line: help, version, one-line errors with exit code 78, no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata

import pytest

from lightllm_server import cli, supervisor
from lightllm_server.options import all_options
from lightllm_server.version import version
from tiny_llama import tiny_llama


@pytest.fixture
def served(monkeypatch):
    """The configurations that would have been served."""
    configs = []
    monkeypatch.setattr(supervisor, "serve", lambda config: configs.append(config) or 0)
    return configs


def test_help_names_every_option_with_default_and_exits_0(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in all_options().values():
        assert re.search(rf"{option.flag}[ ,]", text)
        assert " ".join(option.help.split()) in text
        if option.default not in (None, "", False):
            assert f"(default: {option.default})" in text


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("lightllm-server 0.")


def test_a_checkout_that_is_not_installed_has_a_version_too(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert version() == "0+source"


@pytest.mark.parametrize(
    "words",
    [
        ["--model-dir", "m", "--max-total-token-num", "64"],
        ["--model_dir", "m", "--max_total_token_num", "64"],
        ["--model_dir=m_x", "--max_total_token_num=64"],
    ],
)
def test_dashes_and_underscores_are_the_same(served, words):
    assert cli.main(words) == 0
    assert served[0].engine.max_total_token_num == 64
    assert served[0].engine.model_dir in ("m", "m_x")


def test_flags(served):
    assert cli.main(["--model-dir", "m", "--null-model"]) == 0
    assert cli.main(["--model-dir", "m", "--no-null-model"]) == 0
    assert [config.engine.null_model for config in served] == [True, False]


def test_the_environment_is_read(served, monkeypatch):
    monkeypatch.setenv("LIGHTLLM_MODEL_DIR", "from-env")
    assert cli.main([]) == 0
    assert served[0].engine.model_dir == "from-env"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--model-dir"),
        (["--model-dir"], "--model-dir"),
        (["--model-dir", "m", "--tq", "2"], "--tq"),
        (["--model-dir", "m", "--max-total", "2"], "--max-total"),
        (["--model-dir", "m", "--trust_remote_code"], "--trust"),
        (["--model-dir", "m", "stray"], "stray"),
        (["--model-dir", "m", "--tp", "0"], "--tp: got 0, allowed: 1 to 64"),
        (["check"], "--model-dir"),
        (["check", "--model-dir", "m", "--gpus", "0"], "--gpus: got 0, allowed: 1 to 64"),
        (["check", "--model-dir", "m", "--kv-dtype", "fp4"], "--kv-dtype"),
    ],
)
def test_errors_are_one_line_naming_the_option(served, capsys, words, named):
    assert cli.main(words) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("lightllm-server: error: ")
    assert named in err
    assert served == []


def test_check_prints_one_json_object(capsys):
    assert cli.main(["check", "--model-dir", str(tiny_llama()), "--gpus", "4"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["valid_tp"] == [1, 2, 4]
    assert err == ""


def test_check_prints_errors_as_json_with_exit_code_78(capsys, tmp_path):
    assert cli.main(["check", "--model-dir", str(tmp_path)]) == 78
    out, err = capsys.readouterr()
    (message,) = json.loads(out)["errors"]
    assert str(tmp_path / "config.json") in message
    assert err == ""


def test_neither_command_line_nor_supervisor_imports_torch():
    code = (
        "import sys, lightllm_server.cli, lightllm_server.supervisor, lightllm_server.check;"
        "bad = {'torch', 'transformers', 'triton', 'tokenizers', 'fastapi', 'numpy', 'zmq'};"
        "sys.exit(', '.join(bad & set(sys.modules)) or 0)"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
