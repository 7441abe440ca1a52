"""`fetch` of hf:// against a look-alike of the hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import fake_hub
from fetch_parts import parts_of, wait_for_part
from lightllm_server import cli
from lightllm_server.check import check
from lightllm_server.fetch import download
from tiny_llama import write_tiny_llama

TOKEN = "hf_canaryToken"  # also looked for in everything that is printed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Hardly a pause between tries; the test's own process keeps its signals."""
    monkeypatch.setattr(download, "_FIRST_DELAY_S", 0.001)
    monkeypatch.setattr("signal.signal", lambda *_: None)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    first = write_tiny_llama(folder / "first")
    (first / "pytorch_model.bin").write_bytes(b"pickled")
    (first / "README.md").write_text("read me")
    return SimpleNamespace(first=first, second=write_tiny_llama(folder / "second", seed=1))


@pytest.fixture
def hub(models):
    open_repo = fake_hub.Repo({"main": models.first, "v2": models.second})
    repos = {
        "org/open": open_repo,
        "org/private": fake_hub.Repo({"main": models.first}, token=TOKEN),
        "org/gated": fake_hub.Repo({"main": models.first}, gated=True),
    }
    with fake_hub.running(repos) as running:
        yield running


@pytest.fixture
def fetch(hub, tmp_path, capsys):
    """Runs it; exit code and last word. Nothing printed may hold a secret."""
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")

    def run(repo="org/open", *options, with_token=False):
        more = ["--token-file", str(token)] if with_token else []
        words = ["fetch", f"--uri=hf://{repo}", f"--target={tmp_path / 'model'}"]
        code = cli.main([*words, f"--endpoint={hub.url}", *more, *options])
        printed = capsys.readouterr()
        assert TOKEN not in printed.out + printed.err
        assert "canary-signature" not in printed.out + printed.err
        last = printed.out.strip().splitlines()
        return code, json.loads(last[-1]) if last else printed.err

    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_a_server_needs_is_fetched_and_nothing_else(fetch, models, tmp_path):
    code, last = fetch()
    wanted = files_of(models.first)
    del wanted["pytorch_model.bin"], wanted["README.md"]
    assert files_of(tmp_path / "model") == wanted
    assert code == 0
    assert last["state"] == "complete"
    assert last["bytes"] == sum(map(len, wanted.values()))
    assert last["commit"] == fake_hub.commit_of(models.first)
    report = check(str(tmp_path / "model"), gpus=1)
    assert (report.errors, report.facts["commit"]) == ((), last["commit"])


def test_what_is_there_is_not_asked_for_again(fetch, hub):
    first = fetch()
    num_requests = len(hub.requests)
    assert fetch() == first
    assert len(hub.requests) == num_requests


def test_a_revision_takes_the_place_of_another(fetch, hub, models, tmp_path):
    fetch()
    assert fetch("org/open", "--revision=v2")[0] == 0
    assert files_of(tmp_path / "model") == files_of(models.second)
    commit = fake_hub.commit_of(models.first)
    assert fetch("org/open", f"--revision={commit}")[1]["commit"] == commit


def test_only_the_weights_that_the_index_names(fetch, hub, tmp_path):
    repo = tmp_path / "repo"
    write_tiny_llama(repo)
    weights = (repo / "model.safetensors").rename(repo / "model-00001-of-00001.safetensors")
    (repo / "consolidated.safetensors").write_bytes(weights.read_bytes())
    index = {"weight_map": {"some.tensor": weights.name}}
    (repo / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.repos["org/sharded"] = fake_hub.Repo({"main": repo})
    assert fetch("org/sharded")[0] == 0
    found = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert found == [weights.name]


def test_the_token_opens_what_is_private(fetch, models, tmp_path):
    assert fetch("org/private", with_token=True)[0] == 0
    weights = tmp_path / "model" / "model.safetensors"
    assert weights.read_bytes() == (models.first / weights.name).read_bytes()


@pytest.mark.parametrize(
    ("repo", "options", "with_token", "code", "reason", "says"),
    [
        ("org/none", (), False, 77, "AuthenticationFailed", "private or does not exist"),
        ("org/private", (), False, 77, "AuthenticationFailed", "asks for a token"),
        ("org/gated", (), True, 77, "AuthenticationFailed", "is gated"),
        ("org/none", (), True, 66, "NotFound", "no such repository"),
        ("org/open", ("--revision=v9",), False, 66, "NotFound", "no revision v9"),
    ],
)
def test_a_refusal_has_a_reason(fetch, repo, options, with_token, code, reason, says):
    ended, last = fetch(repo, *options, with_token=with_token)
    assert (ended, last["reason"]) == (code, reason)
    assert says in last["message"]


def test_a_wrong_token_is_refused(fetch, hub, tmp_path):
    hub.repos["org/private"].token = "another"
    code, last = fetch("org/private", with_token=True)
    assert (code, last["reason"]) == (77, "AuthenticationFailed")
    assert "refuses the token" in last["message"]


def test_a_repository_without_a_model_is_not_found(fetch, hub, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing")
    hub.repos["org/empty"] = fake_hub.Repo({"main": tmp_path / "empty"})
    code, last = fetch("org/empty")
    assert (code, last["reason"]) == (66, "NotFound")
    assert "README.md" in last["message"]


def test_a_hub_that_is_not_there_is_a_failure_to_be_repeated(tmp_path, capsys):
    words = [
        "fetch",
        "--uri=hf://org/open",
        f"--target={tmp_path}",
        "--endpoint=http://127.0.0.1:9",
    ]
    assert cli.main(words) == 75
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["reason"] == "DownloadFailed"
    assert "ConnectError" in last["message"]


def test_broken_answers_are_asked_for_again_from_where_they_broke(fetch, hub, models, tmp_path):
    hub.failures = 3
    hub.break_after = 100_000
    assert fetch()[0] == 0
    assert files_of(tmp_path / "model").items() <= files_of(models.first).items()
    size = (models.first / "model.safetensors").stat().st_size
    begins = [int(asked[6:].partition("-")[0]) for asked in hub.ranges("model.safetensors")]
    assert set(begins) == set(range(0, size, 100_000))


def test_a_server_that_ignores_ranges_is_understood(fetch, hub, models, tmp_path):
    hub.ignore_ranges = True
    part_of(tmp_path / "model", hub, models, 1000)
    assert fetch()[0] == 0
    assert files_of(tmp_path / "model").items() <= files_of(models.first).items()


def part_of(target: Path, hub, models, num_bytes: int) -> None:
    """Leave what a killed run would: the first bytes of the weights."""
    from lightllm_server.fetch.hub import HubSource
    from lightllm_server.fetch.ledger import Ledger

    source = HubSource("org/open", revision=None, token=None, endpoint=hub.url)
    [file] = [file for file in source.files() if file.name == "model.safetensors"]
    weights = (models.first / file.name).read_bytes()
    Ledger(target).part(file).write_bytes(weights[:num_bytes])


def test_content_with_another_checksum_is_refused(fetch, hub, tmp_path):
    hub.wrong_bytes = True
    code, last = fetch()
    assert (code, last["reason"]) == (75, "DownloadFailed")
    assert "model.safetensors: its SHA-256" in last["message"]
    assert not (tmp_path / "model" / "model.safetensors").exists()
    hub.wrong_bytes = False
    assert fetch()[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM"])
def test_a_killed_download_is_resumed(hub, fetch, models, tmp_path, end):
    hub.hold_after = 150_000
    target = tmp_path / "model"
    words = ["fetch", "--uri=hf://org/open", f"--target={target}", f"--endpoint={hub.url}"]
    with subprocess.Popen([sys.executable, "-m", "lightllm_server", *words]) as process:
        wait_for_part(target, hub.hold_after)
        process.kill() if end == "SIGKILL" else process.terminate()
        assert process.wait(10) == (-9 if end == "SIGKILL" else 143)
    hub.release.set()
    assert fetch()[0] == 0
    asked = hub.ranges("model.safetensors")
    size = (models.first / "model.safetensors").stat().st_size
    assert asked == [f"bytes=0-{size - 1}", f"bytes=150000-{size - 1}"]
    assert files_of(target).items() <= files_of(models.first).items()
    assert not parts_of(target)


@pytest.mark.slow
def test_two_processes_fetch_once(hub, models, tmp_path):
    hub.hold_after = 1000
    target = tmp_path / "model"
    words = ["fetch", "--uri=hf://org/open", f"--target={target}", f"--endpoint={hub.url}"]
    command = [sys.executable, "-m", "lightllm_server", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        wait_for_part(target, hub.hold_after)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
            assert json.loads(second.stdout.readline())["state"] == "waiting"
            hub.release.set()
            lasts = [process.communicate()[0].splitlines()[-1] for process in (first, second)]
    assert lasts[0] == lasts[1]
    assert len(hub.ranges("model.safetensors")) == 1


def test_headers_alone_are_enough_for_the_check(fetch, hub, models, tmp_path):
    code, _ = fetch("org/open", "--headers-only")
    target = tmp_path / "model"
    assert code == 0
    report = check(str(target), gpus=1)
    assert report.errors == ()
    expected = check(str(models.first), gpus=1).facts
    assert {**report.facts, "model_dir": "", "commit": ""} == {
        **expected,
        "model_dir": "",
        "commit": "",
    }
    whole = (models.first / "model.safetensors").read_bytes()
    assert (target / "model.safetensors").stat().st_size == len(whole)
    assert (target / "model.safetensors").read_bytes() != whole
    # the holes are not taken for the model
    assert fetch()[0] == 0
    assert (target / "model.safetensors").read_bytes() == whole


def test_a_header_longer_than_the_first_answer_is_read_to_its_end(fetch, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "_HEAD_BYTES", 100)
    assert fetch("org/open", "--headers-only")[0] == 0
    assert check(str(tmp_path / "model"), gpus=1).errors == ()
