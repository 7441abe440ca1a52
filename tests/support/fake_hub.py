"""A small look-alike of the Hugging Face hub: the routes that huggingface_hub calls, no more.

Model info, tree, and `resolve`, which sends large files on to another path as the real hub sends
them on to its CDN. Answers 401, 403 and 404 with the hub's headers.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["FakeHub", "Repo", "running"]

_LARGE = ".safetensors"
_PIECE_BYTES = 64 * 1024


@dataclass
class Repo:
    """revisions: branch, tag → folder. token: needed to see it; gated: not even that helps."""

    revisions: dict[str, Path]
    token: str | None = None
    gated: bool = False

    def commits(self) -> dict[str, Path]:
        """Every name of a revision, and every commit, with its folder."""
        by_commit = {commit_of(folder): folder for folder in self.revisions.values()}
        return {**self.revisions, **by_commit}


def commit_of(folder: Path) -> str:
    """40 hex digits that change with the folder's content."""
    digest = hashlib.sha1()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@dataclass
class FakeHub:
    """requests: (method, path, Range) as they came.

    Of answers with a large file: hold_after, bytes after which they stop until `release` is set;
    break_after, bytes after which they end; failures, so many are 503.
    """

    repos: dict[str, Repo]
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    hold_after: int | None = None
    release: threading.Event = field(default_factory=threading.Event)
    failures: int = 0
    break_after: int | None = None
    ignore_ranges: bool = False
    wrong_bytes: bool = False

    def ranges(self, name: str) -> list[str | None]:
        """Of the requests for that file's bytes."""
        return [
            asked for _, path, asked in self.requests if path.startswith("/cdn/") and name in path
        ]


@contextmanager
def running(repos: dict[str, Repo], address: str = "127.0.0.1") -> Iterator[FakeHub]:
    hub = FakeHub(repos)

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer((address, 0), Handler)
    hub.url = f"http://{address}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._api(parts[2:])
        elif parts[0] == "cdn":
            # a signed address on another host: the token must not get there
            foreign = self.headers["Host"].startswith("localhost")
            if foreign and "Authorization" in self.headers:
                self._empty(400)
            else:
                self._file(Path("/", *parts[2:]))
        elif parts[2:3] == ["resolve"]:
            self._resolve(f"{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
        else:
            self._refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def _api(self, parts: list[str]) -> None:
        repo = self._repo("/".join(parts[:2]))
        if repo is None:
            return
        revision = parts[3] if len(parts) > 3 else "main"
        folder = repo.commits().get(revision)
        if folder is None:
            self._refuse(404, "RevisionNotFound")
        elif parts[2] == "tree":
            files = [p for p in sorted(folder.iterdir()) if p.is_file()]
            self._json([_entry(path) for path in files])
        else:
            self._json({"id": "/".join(parts[:2]), "sha": commit_of(folder), "siblings": []})

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        folder = repo.commits().get(revision)
        if folder is None:
            self._refuse(404, "RevisionNotFound")
            return
        path = folder / file
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
        elif file.endswith(_LARGE):
            host = self.headers["Host"].replace("127.0.0.1", "localhost")
            self._empty(302, Location=f"http://{host}/cdn/signed{path}?Signature=canary-signature")
        else:
            self._file(path)

    def _repo(self, name: str) -> Repo | None:
        """The repository if it may be seen; otherwise the answer is sent."""
        repo = self.hub.repos.get(name)
        given = self.headers.get("Authorization")
        known = {f"Bearer {r.token}" for r in self.hub.repos.values() if r.token is not None}
        if given is not None and given not in known:
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif repo is None or (repo.token and given != f"Bearer {repo.token}"):
            # nobody learns which private repositories there are
            self._refuse(401 if given is None else 404, "RepoNotFound", "Repository not found")
        elif repo.gated:
            self._refuse(403, "GatedRepo", "Access to this model is restricted")
        else:
            return repo
        return None

    def _file(self, path: Path) -> None:
        if self.hub.failures:
            self.hub.failures -= 1
            self._empty(503)
            return
        data = path.read_bytes()
        begin, end = 0, len(data)
        asked = self.headers.get("Range")
        if asked and not self.hub.ignore_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(end, int(last or end - 1) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        self._send(path, data[begin:end])

    def _send(self, path: Path, data: bytes) -> None:
        hub = self.hub
        if self.command == "HEAD":
            return
        if hub.wrong_bytes and path.name.endswith(_LARGE):
            data = bytes(len(data))
        at = 0
        limits = [n for n in (hub.hold_after, hub.break_after) if n is not None]
        bound = min(limits) if limits and path.name.endswith(_LARGE) else len(data)
        while at < len(data):
            if at >= bound and hub.break_after is not None:
                self.close_connection = True
                return
            if at >= bound:
                hub.release.wait(60)
                bound = len(data)
            piece = data[at : min(at + _PIECE_BYTES, bound)]
            try:
                self.wfile.write(piece)
            except OSError:
                self.close_connection = True
                return
            at += len(piece)

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _refuse(self, status: int, code: str | None, message: str = "") -> None:
        headers = {"X_Error_Message": message} if message else {}
        if code is not None:
            headers["X_Error_Code"] = code
        self._empty(status, **headers)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    entry: dict[str, Any] = {
        "type": "file",
        "path": path.name,
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest(),
    }
    if path.name.endswith(_LARGE):
        sha256 = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 135}
    return entry
