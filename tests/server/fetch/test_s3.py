"""`fetch` of s3:// against moto's server."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import s3_server
from fetch_parts import wait_for_part
from lightllm_server import cli
from lightllm_server.check import check
from s3_server import KEY, SECRET
from tiny_llama import write_tiny_llama

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endpoint():
    with s3_server.running() as url:
        yield url


@pytest.fixture(scope="module")
def bucket(endpoint, tmp_path_factory):
    """A model under models/tiny, and something else beside it."""
    model = write_tiny_llama(tmp_path_factory.mktemp("model"))
    s3_server.upload(endpoint, model, "weights", "models/tiny")
    client = s3_server.client_of(endpoint)
    client.put_object(Bucket="weights", Key="models/tiny/old/model.safetensors", Body=b"old")
    client.put_object(Bucket="weights", Key="models/tiny2/config.json", Body=b"{}")
    client.put_object(Bucket="weights", Key="models/tiny/", Body=b"")
    return model


@pytest.fixture
def credentials(tmp_path):
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "AWS_ACCESS_KEY_ID").write_text(KEY + "\n")
    (folder / "AWS_SECRET_ACCESS_KEY").write_text(SECRET + "\n")
    return folder


@pytest.fixture
def words(endpoint, bucket, credentials, tmp_path):
    def of(uri="s3://weights/models/tiny"):
        target = f"--target={tmp_path / 'model'}"
        keys = f"--credentials-dir={credentials}"
        return ["fetch", f"--uri={uri}", target, keys, f"--endpoint={endpoint}"]

    return of


@pytest.fixture
def fetch(words, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*uri):
        code = cli.main(words(*uri))
        printed = capsys.readouterr()
        assert SECRET not in printed.out + printed.err
        return code, json.loads(printed.out.splitlines()[-1])

    return run


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_files_of_the_prefix_are_fetched(fetch, bucket, tmp_path, slash):
    code, last = fetch(f"s3://weights/models/tiny{slash}")
    assert code == 0
    assert files_of(tmp_path / "model") == files_of(bucket)
    assert last["bytes"] == sum(map(len, files_of(bucket).values()))
    report = check(str(tmp_path / "model"), gpus=1)
    assert report.errors == ()
    assert "commit" not in report.facts


def test_headers_alone_are_enough_for_the_check(words, capsys, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert cli.main([*words(), "--headers-only"]) == 0, capsys.readouterr().out
    found, whole = (check(str(path), gpus=1) for path in (tmp_path / "model", bucket))
    assert found.errors == ()
    names = ("heads", "valid_tp", "kv_bytes_per_token", "weight_bytes")
    assert [found.facts[name] for name in names] == [whole.facts[name] for name in names]
    weights = tmp_path / "model" / "model.safetensors"
    assert weights.read_bytes()[-64:] == bytes(64)


@pytest.mark.parametrize(
    ("uri", "says"),
    [("s3://nobucket/models", "no such bucket"), ("s3://weights/models/nothing", "found nothing")],
)
def test_what_is_missing_is_not_found(fetch, uri, says):
    code, last = fetch(uri)
    assert (code, last["reason"]) == (66, "NotFound")
    assert says in last["message"]


@pytest.mark.parametrize(
    ("code", "status", "ended", "reason"),
    [
        ("SignatureDoesNotMatch", 403, 77, "AuthenticationFailed"),
        ("ExpiredToken", 400, 77, "AuthenticationFailed"),
        ("PreconditionFailed", 412, 75, "DownloadFailed"),
        ("InternalError", 500, 75, "DownloadFailed"),
    ],
)
def test_answers_of_the_server_become_reasons(fetch, monkeypatch, code, status, ended, reason):
    """moto checks no signatures: the answers that it never gives are put in its place."""
    from botocore.exceptions import ClientError

    from lightllm_server.fetch import download
    from lightllm_server.fetch.s3 import S3Source

    monkeypatch.setattr(download, "_FIRST_DELAY_S", 0.001)
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}

    def refuse(self):
        raise self._translated(ClientError(answer, "ListObjectsV2"))

    monkeypatch.setattr(S3Source, "files", refuse)
    code_ended, last = fetch()
    assert (code_ended, last["reason"]) == (ended, reason)
    assert code in last["message"] or status == 412


_PIECES = 3
# fetches as ever, but stops after some pieces of the weights
_STOPS_HALF_WAY = f"""
import sys, time
from lightllm_server import cli
from lightllm_server.fetch.s3 import S3Source
stream = S3Source.stream
def slow(self, file, begin, end):
    for number, piece in enumerate(stream(self, file, begin, end), 1):
        yield piece
        if file.name.endswith(".safetensors") and number == {_PIECES}:
            time.sleep(60)
S3Source.stream = slow
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_killed_download_is_resumed(words, fetch, endpoint, bucket, tmp_path):
    """The first byte on disk is changed meanwhile: were it fetched again, it would be mended."""
    client = s3_server.client_of(endpoint)
    size = 4 * 2**20
    client.put_object(Bucket="weights", Key="models/big/config.json", Body=b"{}")
    client.put_object(Bucket="weights", Key="models/big/model.safetensors", Body=b"\0" * size)
    target = tmp_path / "model"
    uri = "s3://weights/models/big"
    with subprocess.Popen([sys.executable, "-c", _STOPS_HALF_WAY, *words(uri)]) as process:
        part = wait_for_part(target, _PIECES * 256 * 1024)
        process.kill()
    with part.open("r+b") as file:
        file.write(b"\1")
    assert fetch(uri)[0] == 0
    content = (target / "model.safetensors").read_bytes()
    assert content == b"\1" + b"\0" * (size - 1)
