"""`fetch` whatever the source: storage, progress, options, last words."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections import namedtuple

import pytest

from lightllm_server import cli
from lightllm_server.errors import FetchError
from lightllm_server.fetch.download import download
from lightllm_server.fetch.ledger import Ledger
from lightllm_server.fetch.progress import Progress
from lightllm_server.fetch.source import RemoteFile

CONTENT = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 100}
ORIGIN = {"uri": "test://model"}


class MemorySource:
    """Files in memory; waits for `go` in the midst of the weights."""

    commit = "c0"

    def __init__(self, content=CONTENT) -> None:
        self.content = content
        self.go = threading.Event()
        self.go.set()

    def files(self):
        return [
            RemoteFile(name=name, size=len(data), version=str(hash(data)))
            for name, data in self.content.items()
        ]

    def stream(self, file, begin, end):
        data = self.content[file.name][begin:end]
        yield data[: len(data) // 2]
        assert self.go.wait(10)
        yield data[len(data) // 2 :]


def failure(source, folder) -> FetchError:
    with pytest.raises(FetchError) as caught:
        download(source, folder, ORIGIN, Progress())
    return caught.value


def test_a_model_larger_than_the_disk_is_refused_before_the_first_byte(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, 20_000))
    error = failure(MemorySource(), tmp_path)
    assert error.reason == "InsufficientStorage"
    assert "0 MB free" in str(error)
    assert not list(tmp_path.glob(".fetch/parts/*"))


def test_a_disk_that_fills_up_is_said(tmp_path):
    source = MemorySource()
    [weights] = [file for file in source.files() if file.name == "model.safetensors"]
    part = Ledger(tmp_path).part(weights)
    part.symlink_to("/dev/full")
    error = failure(source, tmp_path)
    assert error.reason == "InsufficientStorage"
    part.unlink()
    assert download(source, tmp_path, ORIGIN, Progress())["commit"] == "c0"


def test_a_target_that_cannot_be_made_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("")
    error = failure(MemorySource(), tmp_path / "file")
    assert (error.reason, error.__cause__.errno) == ("DownloadFailed", errno.ENOTDIR)


class RefusedConfig(MemorySource):
    """Refuses the small file while the large one is under way."""

    def stream(self, file, begin, end):
        if file.name == "config.json":
            self.go.set()
            raise FetchError("AuthenticationFailed", "no access")
        yield from super().stream(file, begin, end)


def test_the_first_failure_ends_the_others_and_is_what_is_told(tmp_path):
    source = RefusedConfig()
    source.go.clear()
    assert failure(source, tmp_path).reason == "AuthenticationFailed"
    assert not (tmp_path / ".fetch" / "complete.json").exists()


def test_names_that_leave_the_directory_are_refused(tmp_path):
    error = failure(MemorySource({"../config.json": b"{}"}), tmp_path / "model")
    assert error.reason == "DownloadFailed"
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_progress_is_served_while_the_download_runs(tmp_path):
    source, progress = MemorySource(), Progress()
    source.go.clear()
    total = sum(map(len, CONTENT.values()))
    with progress.reported(0) as port:
        worker = threading.Thread(target=download, args=(source, tmp_path, ORIGIN, progress))
        worker.start()
        deadline = time.monotonic() + 10
        while read(port)["bytes_done"] < total // 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert read(port) == {
            "state": "downloading",
            "bytes_done": total // 2,
            "bytes_total": total,
        }
        source.go.set()
        worker.join()
        assert read(port) == {"state": "complete", "bytes_done": total, "bytes_total": total}
        with pytest.raises(urllib.error.HTTPError):
            read(port, "/etc/passwd")


def read(port: int, path: str = "/progress") -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return json.load(answer)


@pytest.mark.parametrize(
    "words",
    [
        ["--uri=file:///model"],
        ["--uri=hf://"],
        ["--uri=s3://"],
        ["--uri=hf://org/name", "--token-file=/nowhere/token"],
        ["--uri=s3://bucket", "--credentials-dir=/nowhere"],
        ["--uri=hf://org/name/too/long"],
        ["--uri=s3://bucket", "--endpoint=nonsense"],
        ["--uri=hf://org/name", "--progress-port=many"],
    ],
)
def test_wrong_options_are_one_line_and_78(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert cli.main(["fetch", f"--target={tmp_path}", *words]) == 78
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"lightllm-server: error: {words[-1].partition('=')[0]}") or (
        words[-1].partition("=")[0] in printed.err
    )
    assert printed.err.count("\n") == 1


def test_the_last_word_goes_where_the_kubelet_reads_it(tmp_path):
    log = tmp_path / "termination-log"
    log.touch()
    words = ["fetch", "--uri=hf://org/x", f"--target={tmp_path / 'm'}", f"--termination-log={log}"]
    code = (
        "import sys; from lightllm_server.fetch import download; download._FIRST_DELAY_S = 0;"
        "from lightllm_server import cli; code = cli.main(sys.argv[1:]);"
        "sys.exit(code + 100 * ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={"HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    said = json.loads(log.read_text())
    assert said == json.loads(done.stdout.splitlines()[-1])
    assert said["reason"] == "DownloadFailed"
    assert "http://127.0.0.1:9" in said["message"]
