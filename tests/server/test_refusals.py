"""What cannot be served is refused by the real command: one line, exit code 78, at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from server_process import COMMAND, ServerProcess, free_port
from tiny_llama import tiny_llama

pytestmark = pytest.mark.slow


@pytest.fixture
def model_dir(tmp_path):
    return Path(shutil.copytree(tiny_llama(), tmp_path / "model"))


def refusal(model_dir: Path, *options: str, limit: float = 10.0) -> str:
    """The one line."""
    with ServerProcess(model_dir, *options) as server:
        assert server.wait_exit(limit + 10) == 78
        assert time.monotonic() - server.started < limit
        (line,) = server.log.splitlines()
        return line


def test_an_impossible_tp_lists_the_valid_ones(model_dir):
    line = refusal(model_dir, "--tp", "3", limit=2.0)
    assert line.startswith("lightllm-server: error: --tp 3: ")
    assert line.endswith("valid sizes: 1, 2, 4")


def test_truncated_weights_are_named(model_dir):
    weights = model_dir / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    assert f"error: {weights}: " in refusal(model_dir)


@pytest.mark.parametrize(
    ("field", "value", "file", "cause"),
    [
        ("num_hidden_layers", 1, "model.safetensors", "model.layers.1."),
        ("num_hidden_layers", 3, "", "model.layers.2."),
        ("intermediate_size", 256, "model.safetensors", "mlp."),
        ("architectures", ["MambaForCausalLM"], "config.json", "MambaForCausalLM"),
        ("rope_scaling", {"rope_type": "spiral", "factor": 2.0}, "config.json", "spiral"),
    ],
    ids=["extra weights", "missing weights", "misshapen weights", "architecture", "rope type"],
)
def test_what_does_not_fit_is_named(model_dir, field, value, file, cause):
    config = model_dir / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: value}))
    line = refusal(model_dir)
    assert line.startswith(f"lightllm-server: error: {model_dir / file}")
    assert cause in line


def test_missing_weights_are_named(model_dir):
    (model_dir / "model.safetensors").unlink()
    assert f"error: {model_dir}" in refusal(model_dir)


def test_a_missing_tokenizer_is_named(model_dir):
    (model_dir / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(model_dir)


@pytest.mark.timeout(180)
def test_a_tokenizer_that_cannot_be_converted_is_named(model_dir):
    (model_dir / "tokenizer.json").unlink()
    (model_dir / "tokenizer.model").write_bytes(b"\x00garbage")
    # transformers is imported for it, and torch with that
    with ServerProcess(model_dir) as server:
        assert server.wait_exit(150) == 78
        assert f"error: {model_dir}/tokenizer.model: cannot be converted" in server.log


def test_an_empty_key_file_is_named(model_dir, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("\n\n")
    assert f"--api-key-file {keys}: " in refusal(model_dir, "--api-key-file", str(keys))


def test_an_unknown_host_is_named(model_dir):
    assert "--host 203.0.113.1" in refusal(model_dir, "--host", "203.0.113.1")


def test_a_full_disk_is_named():
    """The temporary directory is a file system of one page."""
    with tempfile.TemporaryDirectory(prefix="t-") as directory:
        options = f"--model-dir {tiny_llama()} --port {free_port()}"
        script = (
            f"mount -t tmpfs -o size=4k,mode=1777 none {directory} || exit 99;"
            f"TMPDIR={directory} exec {' '.join(COMMAND)} {options}"
        )
        outcome = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    if outcome.returncode in (1, 99):
        pytest.skip(f"no private mounts here: {outcome.stderr}")
    assert outcome.returncode == 78, outcome.stderr
    (line,) = outcome.stderr.splitlines()
    assert directory in line
    assert "No space left on device" in line


@pytest.mark.timeout(180)
def test_cuda_without_cuda_is_refused_by_the_process_that_needs_it(model_dir):
    command = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
    if subprocess.run(command, capture_output=True, text=True, check=True).stdout != "False\n":
        pytest.skip("there is a GPU")
    with ServerProcess(model_dir, "--device", "cuda") as server:
        assert server.wait_exit(90) == 78
        errors = [line for line in server.log.splitlines() if " ERROR " in line]
        assert len(errors) == 1
        assert "router: --device cuda" in errors[0]
        assert "Traceback" not in server.log
