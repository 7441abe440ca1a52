"""The client: what it yields, and its error for each way a server can fail."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lightllm_server import client as client_module
from lightllm_server.client import (
    Client,
    ClientError,
    ConnectError,
    RequestRefusedError,
    RequestTimeoutError,
    StreamInterruptedError,
)


def event(data: object) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def chat_event(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}}]})


DONE = event("[DONE]")


class _Handler(BaseHTTPRequestHandler):
    """Answers as the test's `script` says: path → (status, headers, pieces of the body)."""

    def _answer(self) -> None:
        server = self.server
        length = int(self.headers.get("Content-Length", 0))
        server.requests.append((self.path, self.rfile.read(length), dict(self.headers)))
        status, headers, pieces = server.script[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in pieces:
            if piece is None:
                server.silence.wait(5)
                return
            self.wfile.write(piece)

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(script: dict) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.script, server.requests, server.silence = script, [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.silence.set()
        server.shutdown()
        server.server_close()
        thread.join()


def url_of(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HAS_CHAT = (200, {}, [b'{"chat_template": true}'])


def test_a_model_with_a_template_is_asked_in_a_chat():
    script = {"/info": HAS_CHAT, CHAT: (200, {}, [chat_event("He"), chat_event("llo"), DONE])}
    with serve(script) as server:
        client = Client(url_of(server), api_key="k")
        assert list(client.stream("Hi", max_new_tokens=7, temperature=0.5)) == ["He", "llo"]
        assert client.query("Hi", system="Be brief") == "Hello"
        assert list(client.stream_chat("Hi")) == ["He", "llo"]
    # /info is asked once
    paths = [path for path, _, _ in server.requests]
    assert paths == ["/info", CHAT, CHAT, CHAT]
    _, body, headers = server.requests[1]
    assert json.loads(body) == {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "stream": True,
    }
    assert headers["Authorization"] == "Bearer k"
    assert json.loads(server.requests[2][1])["messages"][0] == {
        "role": "system",
        "content": "Be brief",
    }


def test_a_model_without_one_continues_the_text():
    pieces = [event({"choices": [{"text": "a"}]}), event({"choices": [{"text": "b"}]}), DONE]
    script = {"/info": (200, {}, [b'{"chat_template": false}']), TEXT: (200, {}, pieces)}
    with serve(script) as server:
        assert Client(url_of(server)).query("x") == "ab"
        assert Client(url_of(server)).query("x", chat=False) == "ab"
    assert [path for path, _, _ in server.requests] == ["/info", TEXT, TEXT]


def test_nobody_listens():
    with serve({}) as server:
        url = url_of(server)
    client = Client(url)
    assert not client.is_ready()
    with pytest.raises(ConnectError, match=url):
        client.query("x")


def test_an_http_error_is_refused_with_the_servers_words():
    body = json.dumps({"error": {"message": "too many"}}).encode()
    with (
        serve({CHAT: (429, {"Retry-After": "7"}, [body])}) as server,
        pytest.raises(RequestRefusedError) as refused,
    ):
        Client(url_of(server)).query("x", chat=True)
    assert (refused.value.status, refused.value.message) == (429, "too many")
    assert refused.value.retry_after == 7


def test_readiness():
    with serve({"/readyz": (503, {}, [b"{}"])}) as server:
        assert not Client(url_of(server)).is_ready()
        server.script["/readyz"] = (200, {}, [b"{}"])
        assert Client(url_of(server)).is_ready()


@pytest.mark.parametrize("pieces", [[None], [chat_event("He"), None]])
def test_silence_is_a_timeout(pieces):
    with (
        serve({CHAT: (200, {}, pieces)}) as server,
        pytest.raises(RequestTimeoutError) as silent,
    ):
        Client(url_of(server), timeout=0.2).query("x", chat=True)
    assert isinstance(silent.value, TimeoutError)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([chat_event("He")], "before the answer did"),
        ([chat_event("He"), event({"error": {"message": "lost"}})], "lost"),
        ([], "before the answer did"),
    ],
)
def test_a_broken_stream_is_interrupted_after_what_came(pieces, text):
    with serve({CHAT: (200, {}, pieces)}) as server:
        stream = Client(url_of(server)).stream("x", chat=True)
        got = []
        with pytest.raises(StreamInterruptedError, match=text):  # noqa: PT012
            for piece in stream:
                got.append(piece)
    assert got == ["He"] * bool(pieces)


def test_something_else_listens():
    with (
        serve({CHAT: (404, {}, [b"<html>not here</html>"])}) as server,
        pytest.raises(RequestRefusedError, match="not here"),
    ):
        Client(url_of(server)).query("x", chat=True)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://"])
def test_an_unusable_url_is_a_value_error(url):
    with pytest.raises(ValueError, match="url"):
        Client(url)


def test_command_line_streams_and_exits_0(capsys):
    script = {"/info": HAS_CHAT, CHAT: (200, {}, [chat_event("Hel"), chat_event("lo"), DONE])}
    with serve(script) as server:
        assert client_module.main(["--url", url_of(server), "--text", "x"]) == 0
    assert capsys.readouterr().out == "Hello\n"


def test_command_line_says_one_line_and_exits_1(capsys):
    with serve({}) as server:
        url = url_of(server)
    assert client_module.main(["--url", url, "--text", "x"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip().startswith(f"lightllm-client: {url}")
    assert len(captured.err.strip().splitlines()) == 1


def test_command_line_reads_a_key_file_and_standard_input(tmp_path, monkeypatch, capsys):
    key = tmp_path / "key"
    key.write_text("secret\n")
    with serve({CHAT: (200, {}, [chat_event("ok"), DONE])}) as server:
        monkeypatch.setattr("sys.stdin", type("In", (), {"read": lambda self: "the question"})())
        arguments = ["--url", url_of(server), "--chat", "--api-key-file", str(key)]
        assert client_module.main(arguments) == 0
    _, body, headers = server.requests[0]
    assert json.loads(body)["messages"][0]["content"] == "the question"
    assert headers["Authorization"] == "Bearer secret"


def test_bad_arguments_exit_2():
    with pytest.raises(SystemExit) as ended:
        client_module.main(["--url", "nonsense", "--text", "x"])
    assert ended.value.code == 2


def test_errors_share_a_root():
    errors = (ConnectError, RequestTimeoutError, RequestRefusedError, StreamInterruptedError)
    assert all(issubclass(error, ClientError) for error in errors)


def test_it_needs_the_standard_library_only():
    code = (
        "import sys; before = set(sys.modules); import lightllm_server.client; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - sys.stdlib_module_names - {'lightllm_server'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
