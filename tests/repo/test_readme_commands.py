"""The README's commands on the server, run as they stand but for the port; and its demo."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server_process import ServerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SERVER_PART = README[README.index("## Serve a model") : README.index("## Speed")]
DEMO_MODEL = ROOT / "examples" / "demo-model"
URL = "http://127.0.0.1:8000"
ANSWER = "token"


def commands() -> list[str]:
    """Every `$ …` of the console blocks, continuation lines joined, remarks cut off."""
    blocks = re.findall(r"```console\n(.*?)```", SERVER_PART, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    assert len(found) >= 6, found
    return found


def command(begin: str) -> str:
    (found,) = [line for line in commands() if line.startswith(begin)]
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """What `make serve` runs, on a free port and with the log as JSON."""
    options = ["--log-format", "json", "--drain-delay", "0"]
    with ServerProcess(DEMO_MODEL, *options) as running:
        running.wait_ready(120)
        yield running


def run(line: str, server: ServerProcess) -> str:
    words = shlex.split(line.replace(URL, server.url), comments=True)
    if words[0] == "curl" and shutil.which("curl") is None:
        pytest.skip("no curl here")
    words[0] = words[0].replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    outcome = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_the_client_on_the_command_line(server):
    assert ANSWER in run(command(".venv/bin/lightllm-client"), server)


def test_curl(server):
    asked, streamed = [line for line in commands() if line.startswith("curl")]
    assert ANSWER in json.loads(run(asked, server))["generated_text"][0]
    events = run(streamed, server).split("\n\n")
    assert len(events) > 10
    assert events[-2] == "data: [DONE]"


def test_the_python_block(server):
    (code,) = re.findall(r"```python\n(.*?)```", SERVER_PART, re.DOTALL)
    assert URL in code
    # without torch, as it says
    code = f"import sys; sys.modules['torch'] = None\n{code.replace(URL, server.url)}"
    command = [sys.executable, "-c", code]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert len(outcome.stdout) > 100


def test_the_check(server):
    report = json.loads(run(command(".venv/bin/lightllm-server check"), server))
    assert report["valid_tp"] == [1, 2, 4]
    assert report["errors"] == []


def test_every_route_of_the_table_is_there(server):
    from lightllm_server.api.app import routes_app

    served = set(routes_app(None).openapi()["paths"])
    rows = re.findall(r"^\| `(?:GET|POST) .*?\|", SERVER_PART, re.MULTILINE)
    named = {path for row in rows for path in re.findall(r"[` ](/[\w/]*)`", row)}
    assert len(named) >= 14
    assert named <= served


def test_the_log_is_json_and_shows_the_loading(server):
    events = [json.loads(line) for line in server.log.splitlines()]
    assert all({"time", "level", "process", "message"} <= set(event) for event in events)
    messages = [event["message"] for event in events if event["process"] == "supervisor"]
    for wanted in ("router: loading (", "router: ready (", "api: ready (", "ready in "):
        assert any(message.startswith(wanted) for message in messages), wanted


def test_the_demo_answers_three_questions():
    script = [sys.executable, "scripts/demo/server.py"]
    outcome = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    answers = re.findall(r"> (.+\?)\S*\n(.+)\n  \(first text after", outcome.stdout)
    assert len(answers) == 3, outcome.stdout
    assert all(len(answer) > 40 for _, answer in answers)
    assert "scripts/demo/server.py" in (ROOT / "Makefile").read_text()
