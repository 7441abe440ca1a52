"""Loading a model's tokenizer without transformers: `tokenizer.json`, or one converted at start.

Raw prompts are read as the field reads them: the texts of special tokens in them are special
tokens, since completion users send whole templates. Messages of a chat are not
(`chat_tokenizer.py`).
Lives here: files to a `tokenizers.Tokenizer`. Not here: ids to text as it streams (`detok/`).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from lightllm_server.errors import ModelError
from lightllm_server.tokenizer_config import read_tokenizer_config

__all__ = ["TextTokenizer", "load_tokenizer", "prepare_tokenizer"]

_FILE: Final = "tokenizer.json"
# what transformers can build a tokenizer of, and the packages that it needs for it
_CONVERTIBLE: Final = {
    "tokenizer.model": ("sentencepiece", "google.protobuf"),
    "spiece.model": ("sentencepiece", "google.protobuf"),
    "tiktoken.model": ("tiktoken",),
    "vocab.json": (),
}
_CONVERT_LIMIT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """Text ⇄ ids, whole texts at once."""

    backend: Tokenizer
    path: Path

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """`add_special_tokens`: add what the tokenizer's post-processor adds (mostly BOS)."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Ids that are no tokens have no text."""
        text: str = self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text


def load_tokenizer(model_dir: Path, run_dir: Path | None = None) -> TextTokenizer:
    """The model's tokenizer, or the one that `prepare_tokenizer` left in `run_dir`.

    Raises ModelError, which names the file and the cause.
    """
    path = _find(model_dir, run_dir)
    if path is None:
        raise _missing(model_dir)
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:
        # `tokenizers` has no exception class of its own
        raise ModelError(path, f"is no usable tokenizer: {error}") from error
    # set for training; they would cut or lengthen prompts
    backend.no_truncation()
    backend.no_padding()
    _add_named_tokens(backend, model_dir)
    return TextTokenizer(backend, path)


def prepare_tokenizer(model_dir: Path, run_dir: Path) -> None:
    """Make sure that `load_tokenizer` finds one: convert older files, in a process of its own.

    Raises ModelError if there is nothing to convert or it fails. Costs seconds where it converts,
    nothing otherwise.
    """
    if _find(model_dir, run_dir) is not None:
        return
    source = next((name for name in _CONVERTIBLE if (model_dir / name).is_file()), None)
    if source is None:
        raise _missing(model_dir)
    for package in _CONVERTIBLE[source]:
        if not _is_installed(package):
            raise ModelError(model_dir / source, f"needs the package {package} to become a {_FILE}")
    target = run_dir / _FILE
    command = [sys.executable, "-m", "lightllm_server.tokenizer_convert"]
    try:
        done = subprocess.run(  # noqa: S603 - our own module on our own paths
            [*command, str(model_dir), str(target)],
            capture_output=True,
            text=True,
            timeout=_CONVERT_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            model_dir / source, f"converting the tokenizer took more than {_CONVERT_LIMIT_S:g} s"
        ) from error
    if done.returncode != 0 or not target.is_file():
        cause = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(model_dir / source, f"cannot be converted to {_FILE}: {cause}")


def _add_named_tokens(backend: Tokenizer, model_dir: Path) -> None:
    """Make tokens special that only the config names (`eos_token`, …), as transformers does."""
    named = read_tokenizer_config(model_dir).special_tokens.values()
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [text for text in named if text not in added]
    # one that the vocabulary lacks would get an id that the model does not know
    backend.add_special_tokens([text for text in missing if backend.token_to_id(text) is not None])


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _find(model_dir: Path, run_dir: Path | None) -> Path | None:
    folders = [model_dir] if run_dir is None else [model_dir, run_dir]
    return next((path for f in folders if (path := f / _FILE).is_file()), None)


def _missing(model_dir: Path) -> ModelError:
    names = ", ".join((_FILE, *_CONVERTIBLE))
    return ModelError(model_dir, f"has no tokenizer; looked for {names}")
