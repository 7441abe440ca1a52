"""Where a model's files come from, and which of them a server needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from lightllm_server.models.safetensors_header import INDEX_NAME, SINGLE_NAME

__all__ = ["WEIGHTS", "RemoteFile", "Source", "needed"]

WEIGHTS = "*.safetensors"
# config, tokenizer and chat template of every layout that is read; nothing that carries code
_OTHERS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """version: changes with the content. sha256: of the content, None where the source does not
    tell it."""

    name: str
    size: int
    version: str
    sha256: str | None = None


class Source(Protocol):
    """A directory of files elsewhere. Both methods raise FetchError, InterruptedFetchError where
    another try may help."""

    def files(self) -> list[RemoteFile]:
        """The files of the directory itself, without subdirectories."""

    def stream(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        """Bytes `begin` to `end` of that version, in pieces; may end early."""

    @property
    def commit(self) -> str:
        """The revision that `files` resolved to, "" where there are none."""


def needed(
    files: Sequence[RemoteFile], read: Callable[[RemoteFile], bytes]
) -> tuple[RemoteFile, ...]:
    """What the server reads: config, tokenizer, chat template, and one set of weights.

    read: gives a whole file; called for the index of the weights, if there is one.
    """
    weights = {file.name: file for file in files if fnmatchcase(file.name, WEIGHTS)}
    index = next((file for file in files if file.name == INDEX_NAME), None)
    if index is not None:
        shards = _shards(read(index))
        weights = {name: file for name, file in weights.items() if name in shards} or weights
    elif SINGLE_NAME in weights:
        weights = {SINGLE_NAME: weights[SINGLE_NAME]}
    others = [file for file in files if any(fnmatchcase(file.name, pattern) for pattern in _OTHERS)]
    return (*others, *weights.values())


def _shards(index: bytes) -> set[str]:
    """Named by the index; none where it is broken, which the check of the model will say."""
    try:
        return {str(name) for name in json.loads(index)["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()
