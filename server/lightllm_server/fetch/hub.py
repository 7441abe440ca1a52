"""A repository of the Hugging Face hub, or of a server that speaks like it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)

from lightllm_server.errors import ConfigError, FetchError, InterruptedFetchError
from lightllm_server.fetch.source import RemoteFile

__all__ = ["HubSource"]

_HUB = "https://huggingface.co"
_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)


class HubSource:
    """repo: `org/name`. endpoint: None for $HF_ENDPOINT, else the public hub."""

    def __init__(
        self, repo: str, *, revision: str | None, token: str | None, endpoint: str | None
    ) -> None:
        self._repo = repo
        self._revision = revision or "main"
        self._token = token
        self._endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
        self._commit = ""

    @property
    def commit(self) -> str:
        return self._commit

    def files(self) -> list[RemoteFile]:
        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        try:
            found = api.model_info(self._repo, revision=self._revision, timeout=60)
            assert found.sha is not None, "the hub names the commit of every revision"
            self._commit = found.sha
            entries = list(api.list_repo_tree(self._repo, revision=found.sha))
        except httpx2.HTTPError as error:
            raise self._translated(error) from None
        except (HFValidationError, ValueError) as error:
            raise ConfigError(f"--uri hf://{self._repo}: {error}") from None
        return [_remote(entry) for entry in entries if isinstance(entry, RepoFile)]

    def stream(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        url = hf_hub_url(
            self._repo, file.name, revision=self._commit or None, endpoint=self._endpoint
        )
        headers = build_hf_headers(token=self._token or False)
        headers |= {"Accept-Encoding": "identity", "Range": f"bytes={begin}-{end - 1}"}
        try:
            with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
                hf_raise_for_status(response)
                # a server may answer a range with the whole file
                skip = begin if response.status_code == 200 else 0
                left = end - begin
                for piece in response.iter_raw():
                    yield piece[skip : skip + left]
                    left -= len(piece[skip : skip + left])
                    skip = max(0, skip - len(piece))
                    if left == 0:
                        return
        except httpx2.HTTPError as error:
            raise self._translated(error) from None

    def _translated(self, error: httpx2.HTTPError) -> FetchError:
        """Without the error's own text: the address that it shows may be a signed one."""
        where = f"hf://{self._repo} at {self._endpoint}"
        if not isinstance(error, HfHubHTTPError):
            return InterruptedFetchError(f"{where}: {type(error).__name__}: {_plain(error)}")
        status = error.response.status_code
        if isinstance(error, RevisionNotFoundError):
            return FetchError("NotFound", f"{where} has no revision {self._revision}")
        if isinstance(error, GatedRepoError):
            gated = "the repository is gated, and this token has no access to it"
            return FetchError("AuthenticationFailed", f"{where}: {gated}")
        if status in (401, 403):
            asked = "refuses the token" if self._token else "asks for a token"
            return FetchError(
                "AuthenticationFailed",
                f"{where} {asked} (HTTP {status}): the repository is private or does not exist",
            )
        if status == 404:
            private = "" if self._token else ", or it is private and needs a token"
            return FetchError("NotFound", f"{where}: there is no such repository{private}")
        if status in (408, 429) or status >= 500:
            return InterruptedFetchError(f"{where}: HTTP {status}")
        return FetchError("DownloadFailed", f"{where}: HTTP {status}")


def _plain(error: httpx2.HTTPError) -> str:
    text = str(error)
    return "" if "://" in text else text


def _remote(entry: RepoFile) -> RemoteFile:
    sha256 = entry.lfs.sha256 if entry.lfs is not None else None
    return RemoteFile(
        name=entry.path, size=entry.size, version=sha256 or entry.blob_id, sha256=sha256
    )
