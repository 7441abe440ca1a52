"""The hand-made corpus of bad input: what is sent, which statuses are right, which field is named.

Lengths are those of the `server` fixture: 512 tokens per request, vocabulary 261, n at most 8.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["BODIES", "RAW", "BadBody", "RawCase"]

CHAT, COMPLETION, GENERATE, STREAM = (
    "/v1/chat/completions",
    "/v1/completions",
    "/generate",
    "/generate_stream",
)
VOCAB = 261
LIMIT = 512


@dataclass(frozen=True)
class BadBody:
    """A POST; `field` must be in the message and, for OpenAI's routes, in `param`."""

    name: str
    path: str
    body: Any
    statuses: tuple[int, ...] = (400,)
    field: str | None = None

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def completion(name: str, field: str | None, statuses=(400,), **fields: Any) -> BadBody:
    body = {"prompt": "x", "max_tokens": 2, **fields}
    return BadBody(name, COMPLETION, body, statuses, field)


def chat(name: str, field: str | None, statuses=(400,), **fields: Any) -> BadBody:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, **fields}
    return BadBody(name, CHAT, body, statuses, field)


def generate(name: str, field: str | None, statuses=(400,), **parameters: Any) -> BadBody:
    return BadBody(name, GENERATE, {"inputs": "x", "parameters": parameters}, statuses, field)


def message(name: str, content: Any, role: str = "user", field: str = "messages.0") -> BadBody:
    return chat(name, field, messages=[{"role": role, "content": content}])


def image(url: str) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": url}}]


def floats() -> list[BadBody]:
    bad = {"NaN": "NaN", "inf": "Infinity", "-inf": "-Infinity", "1e999": "1e999", "5e4": "50000"}
    fields = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "min_p")
    found = []
    for field in (*fields, "repetition_penalty"):
        for name, text in bad.items():
            data = f'{{"prompt": "x", "max_tokens": 2, "{field}": {text}}}'.encode()
            # NaN and Infinity are no JSON at all
            named = field if name in ("1e999", "5e4") else None
            found.append(BadBody(f"{field} {name}", COMPLETION, data, (400,), named))
    return found


BODIES: list[BadBody] = [
    *floats(),
    completion("negative zero is zero", None, (200,), temperature=-0.0),
    BadBody(
        "5000-digit max_tokens",
        COMPLETION,
        b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    ),
    completion("n 1.0", "n", n=1.0),
    completion("n true", "n", n=True),
    completion("n 0", "n", n=0),
    completion("n 9", "n", n=9),
    completion("n huge", "n", n=10**9),
    completion("best_of without n", "best_of", best_of=2),
    completion("suffix", "suffix", suffix="end"),
    completion("temperature string", "temperature", temperature="1"),
    completion("temperature 1e-30", None, (200,), temperature=1e-30),
    completion("temperature 0", None, (200,), temperature=0),
    completion("temperature 2", None, (200,), temperature=2),
    completion("temperature 2.01", "temperature", temperature=2.01),
    completion("temperature -1", "temperature", temperature=-1),
    completion("top_p 0", "top_p", top_p=0),
    completion("top_p 1.1", "top_p", top_p=1.1),
    completion("top_k -1 is off", None, (200,), top_k=-1),
    completion("top_k 0 is off", None, (200,), top_k=0),
    completion("top_k beyond the vocabulary is off", None, (200,), top_k=VOCAB + 1),
    completion("top_k -2", "top_k", top_k=-2),
    completion("max_tokens 0", "max_tokens", max_tokens=0),
    completion("max_tokens -1", "max_tokens", max_tokens=-1),
    completion("max_tokens 2^31", "max_tokens", max_tokens=2**31),
    completion("max_tokens 2^64", "max_tokens", max_tokens=2**64),
    completion("max_tokens beyond the limit", "max_tokens", max_tokens=LIMIT),
    completion("min_tokens above max_tokens", "min_tokens", min_tokens=3),
    completion("seed 2^63", "seed", seed=2**63),
    completion("seed negative", None, (200,), seed=-1),
    completion("logprobs 21", "logprobs", logprobs=21),
    completion("prompt missing", "prompt", prompt=None),
    completion("prompt number", "prompt", prompt=5),
    completion("prompt empty", "prompt", prompt=""),
    completion("prompt empty list", "prompt", prompt=[]),
    completion("prompt list with an empty list", "prompt", prompt=[[]]),
    completion("prompt mixed list", "prompt", prompt=["a", 1]),
    completion("prompt nested too deep", "prompt", prompt=[[[1]]]),
    completion("prompt of booleans", "prompt", prompt=[True, False]),
    completion("prompt of floats", "prompt", prompt=[1.5]),
    completion("token id -1", "prompt", prompt=[-1]),
    completion("token id vocab", "prompt", prompt=[VOCAB]),
    completion("token id 2^63", "prompt", prompt=[2**63]),
    completion("prompt at the limit", "prompt", prompt=[65] * LIMIT, max_tokens=1),
    completion("prompt above the limit", "prompt", prompt=[65] * (LIMIT + 1), max_tokens=1),
    completion("prompt below the limit", None, (200,), prompt=[65] * (LIMIT - 1), max_tokens=1),
    completion("prompt and output above", "max_tokens", prompt=[65] * (LIMIT - 1), max_tokens=2),
    completion("text above the limit", "prompt", prompt="a" * LIMIT, max_tokens=1),
    completion("1 MB of combining marks", "prompt", prompt="\u0301" * 500_000),
    completion("1 MB prompt", "prompt", prompt="a" * 2**20),
    completion("1025 prompts", "prompt", prompt=["a"] * 1025),
    completion("special tokens only", None, (200,), prompt="<s></s>"),
    completion("NUL", None, (200,), prompt="a\0b"),
    completion("U+FFFF and RTL", None, (200,), prompt="\uffff\u202eabc"),
    completion("logit_bias outside", "logit_bias", logit_bias={str(VOCAB): 1}),
    completion("logit_bias no number", "logit_bias", logit_bias={"abc": 1}),
    completion("logit_bias negative", "logit_bias", logit_bias={"-1": 1}),
    completion("logit_bias 101", "logit_bias", logit_bias={"1": 101}),
    completion("logit_bias 10k", "logit_bias", logit_bias={str(i): 0 for i in range(10_000)}),
    completion("logit_bias list", "logit_bias", logit_bias=[1]),
    completion("stop none", None, (200,), stop=[]),
    completion("stop 5", None, (200,), stop=["a", "b", "c", "d", "e"]),
    completion("stop 1000", "stop", stop=["a"] * 1000),
    completion("stop empty string", "stop", stop=""),
    completion("stop empty in list", "stop", stop=["a", ""]),
    completion("stop 1 MB", "stop", stop="a" * 2**20),
    completion("stop number", "stop", stop=1),
    completion("stop_token_ids outside", "stop_token_ids", stop_token_ids=[VOCAB]),
    completion("stop_token_ids 1000", "stop_token_ids", stop_token_ids=[1] * 1000),
    completion("stream_options without stream", "stream_options", stream_options={}),
    completion("stream as a string", "stream", stream="true"),
    completion("unknown model", "model", (404,), model="gpt-4"),
    completion("model number", "model", model=3),
    completion("model of 1 MB", "model", model="m" * 2**20),
    completion("unknown field", "frobnicate", frobnicate=1),
    completion("field name of 1 MB", None, **{"f" * 2**20: 1}),
    completion("guided regex", "guided_regex", guided_regex="(a+)+$"),
    completion("prompt embeddings", "prompt_embeds", prompt_embeds="AAAA"),
    chat("tools", "tools", tools=[{"type": "function", "function": {"name": "f"}}]),
    chat("tools with a bad pattern", "tools", tools=[{"pattern": "(" * 1000}]),
    chat("tool_choice", "tool_choice", tool_choice="auto"),
    chat("functions", "functions", functions=[{"name": "f"}]),
    chat("response_format json", "response_format", response_format={"type": "json_object"}),
    chat(
        "response_format schema",
        "response_format",
        response_format={"type": "json_schema", "json_schema": {"schema": {}}},
    ),
    chat("response_format text", None, (200,), response_format={"type": "text"}),
    chat("template kwargs", "chat_template_kwargs", chat_template_kwargs={"tokenize": True}),
    chat("own template", "chat_template", chat_template="{{ ''.__class__ }}"),
    chat("no messages", "messages", messages=[]),
    chat("messages string", "messages", messages="x"),
    chat("10k messages", "messages", messages=[{"role": "user", "content": "x"}] * 10_000),
    chat("messages above the limit", "messages", messages=[{"role": "user", "content": "x" * 600}]),
    chat("both lengths", "max_tokens", max_completion_tokens=2),
    chat("top_logprobs alone", "top_logprobs", top_logprobs=1),
    chat("logprobs number", "logprobs", logprobs=3),
    message("unknown role", "x", role="wizard"),
    message("content null", None),
    message("content number", 5),
    message("content empty list", []),
    message("content of another type", [{"type": "input_audio", "input_audio": {}}]),
    message("image http", image("http://127.0.0.1:9/a.png")),
    message("image https", image("https://localhost/a.png")),
    message("image file", image("file:///etc/passwd")),
    message("image data", image("data:image/png;base64,AAAA")),
    message("image link-local", image("http://169.254.169.254/latest/meta-data")),
    message("image backslash host", image("http://a\\@localhost/")),
    generate("max_new_tokens 0", "max_new_tokens", max_new_tokens=0),
    generate("max_new_tokens huge", "max_new_tokens", max_new_tokens=10**5),
    generate("min above max", "min_new_tokens", max_new_tokens=1, min_new_tokens=2),
    generate("sampling temperature -1", "temperature", do_sample=True, temperature=-1),
    generate("repetition_penalty 0", "repetition_penalty", repetition_penalty=0),
    generate("regular_constraint", "regular_constraint", regular_constraint="(a|a)*$"),
    generate("guided_json", "guided_json", guided_json={"type": "object"}),
    generate("best_of 9", "best_of", best_of=9),
    generate("unknown parameter", "beam_width", beam_width=4),
    BadBody(
        "stream of samples", STREAM, {"inputs": "x", "parameters": {"best_of": 2}}, field="best_of"
    ),
    BadBody("inputs missing", GENERATE, {"parameters": {}}, field="inputs"),
    BadBody("inputs null", GENERATE, {"inputs": None}, field="inputs"),
    BadBody("inputs list of texts", GENERATE, {"inputs": ["a"]}, field="inputs"),
    BadBody(
        "images",
        GENERATE,
        {"inputs": "x", "multimodal_params": {"images": [{"type": "url", "data": "http://a"}]}},
        field="multimodal_params",
    ),
    BadBody("parameters list", GENERATE, {"inputs": "x", "parameters": []}, field="parameters"),
    BadBody("empty body", CHAT, b""),
    BadBody("null", CHAT, b"null"),
    BadBody("array", CHAT, b"[]"),
    BadBody("number", CHAT, b"1"),
    BadBody("half a body", CHAT, b'{"messages": [{"role": "user"'),
    BadBody("trailing garbage", COMPLETION, b'{"prompt": "x"} x'),
    BadBody("100k deep arrays", COMPLETION, b'{"prompt": ' + b"[" * 100_000, (400, 413)),
    BadBody("100k deep objects", CHAT, b'{"a":' * 100_000, (400, 413)),
    BadBody("invalid UTF-8", COMPLETION, b'{"prompt": "\xff\xfe"}'),
    BadBody("lone surrogate", COMPLETION, b'{"prompt": "\\ud800"}'),
    BadBody(
        "surrogates reversed", CHAT, b'{"messages":[{"role":"user","content":"\\udc00\\ud800"}]}'
    ),
    BadBody("UTF-16", COMPLETION, '{"prompt": "x"}'.encode("utf-16")),
    BadBody("byte order mark", COMPLETION, b'\xef\xbb\xbf{"prompt": "x"}'),
    BadBody("duplicate keys", COMPLETION, b'{"prompt":"x","max_tokens":2,"max_tokens":3}', (200,)),
    BadBody("form body", COMPLETION, b"prompt=x&max_tokens=2"),
    BadBody(
        "pickle", COMPLETION, b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94."
    ),
    BadBody(
        "one million array items", "/tokenize", b'{"prompt":[' + b"1," * 2**20 + b"1]}", (413,)
    ),
    BadBody("tokenize nothing", "/tokenize", {}, field="prompt"),
    BadBody("tokenize both", "/tokenize", {"prompt": "a", "messages": []}, field="messages"),
    BadBody("detokenize outside", "/detokenize", {"tokens": [VOCAB]}, field="tokens"),
    BadBody("detokenize negative", "/detokenize", {"tokens": [-1]}, field="tokens"),
    BadBody("detokenize too many", "/detokenize", {"tokens": [1] * (LIMIT + 1)}, field="tokens"),
]


@dataclass(frozen=True)
class RawCase:
    """Bytes on a connection; `statuses` of the first answer, empty: closed without one."""

    name: str
    data: bytes
    statuses: tuple[int, ...]


def head(method: str, path: str, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode()


GOOD = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
LENGTH = f"Content-Length: {len(GOOD)}"
CLOSE = "Connection: close"

RAW: list[RawCase] = [
    RawCase("no HTTP", b"\x16\x03\x01\x02\x00hello\r\n\r\n", (400,)),
    RawCase("HTTP/1.0", head("POST", COMPLETION, LENGTH, version="1.0") + GOOD, (200,)),
    RawCase("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 404)),
    RawCase("negative length", head("POST", COMPLETION, "Content-Length: -1", CLOSE), (400,)),
    RawCase("length no number", head("POST", COMPLETION, "Content-Length: x", CLOSE), (400,)),
    RawCase("two lengths", head("POST", COMPLETION, LENGTH, "Content-Length: 5", CLOSE), (400,)),
    RawCase(
        "length too small", head("POST", COMPLETION, "Content-Length: 5", CLOSE) + GOOD, (400,)
    ),
    RawCase(
        "length beyond the limit",
        head("POST", COMPLETION, f"Content-Length: {2**40}", "Expect: 100-continue", CLOSE),
        (413, 100),
    ),
    RawCase("no host", b"GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", (400,)),
    RawCase(
        "chunked with trailers",
        head("POST", COMPLETION, "Transfer-Encoding: chunked", CLOSE)
        + f"{len(GOOD):x}\r\n".encode()
        + GOOD
        + b"\r\n0\r\nX-Trailer: a\r\n\r\n",
        (200,),
    ),
    RawCase(
        "bad chunk size",
        head("POST", COMPLETION, "Transfer-Encoding: chunked", CLOSE) + b"zz\r\nabc\r\n0\r\n\r\n",
        (400,),
    ),
    RawCase(
        "gzip body",
        head("POST", COMPLETION, "Content-Encoding: gzip", LENGTH, CLOSE) + GOOD,
        (415,),
    ),
    RawCase("65 KiB header", head("GET", "/livez", "X-Big: " + "a" * 66_560, CLOSE), (400, 431)),
    RawCase(
        "10k headers",
        head("GET", "/livez", *(f"X-{i}: a" for i in range(10_000)), CLOSE),
        (400, 431),
    ),
    RawCase(
        "200 headers", head("GET", "/livez", *(f"X-{i}: a" for i in range(200)), CLOSE), (431,)
    ),
    RawCase("200 MB header", head("GET", "/livez", "X-Big: " + "a" * (200 * 2**20)), (400, 431)),
    RawCase("header without colon", head("GET", "/livez", "broken", CLOSE), (400,)),
    RawCase("NUL in a header", head("GET", "/livez", "X-A: a\0b", CLOSE), (400,)),
    RawCase(
        "path with bytes", b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (400,)
    ),
    RawCase("traversal", head("GET", "/v1/../../etc/passwd", CLOSE), (404,)),
    RawCase("encoded traversal", head("GET", "/%2e%2e/%2e%2e/etc/passwd", CLOSE), (404,)),
    RawCase("double slash", head("GET", "//livez", CLOSE), (404,)),
    RawCase("absolute target", head("GET", "http://x/livez", CLOSE), (200, 400, 404)),
    RawCase("unknown route", head("GET", "/nothing", CLOSE), (404,)),
    RawCase("GET on a POST route", head("GET", COMPLETION, CLOSE), (405,)),
    RawCase("HEAD", head("HEAD", "/v1/models", CLOSE), (405,)),
    RawCase("OPTIONS", head("OPTIONS", COMPLETION, CLOSE), (405,)),
    RawCase("TRACE", head("TRACE", "/livez", CLOSE), (405,)),
    RawCase("DELETE", head("DELETE", "/v1/models/tiny", CLOSE), (405,)),
    RawCase("invented method", head("FROB", "/livez", CLOSE), (405,)),
    RawCase("CONNECT", head("CONNECT", "localhost:80", CLOSE), (400, 404, 405)),
    RawCase(
        "websocket upgrade",
        head("GET", "/livez", "Upgrade: websocket", "Connection: Upgrade, close"),
        (200, 400),
    ),
    RawCase(
        "pipelined",
        (head("POST", COMPLETION, LENGTH) + GOOD) * 3 + head("GET", "/livez", CLOSE),
        (200,),
    ),
]
