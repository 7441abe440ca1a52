"""What a model directory says of its tokenizer beside `tokenizer.json`.

That is: the named special tokens and the chat template, from `tokenizer_config.json`,
`special_tokens_map.json` (older models) and `chat_template.jinja`, read as transformers reads them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lightllm_server.errors import ModelError

__all__ = ["TokenizerConfig", "read_tokenizer_config"]

_CONFIG: Final = "tokenizer_config.json"
_SPECIAL_TOKENS: Final = "special_tokens_map.json"
_TEMPLATE: Final = "chat_template.jinja"
_NAMES: Final = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """`special_tokens` by name (`bos_token`, …); `template_path` is where the template stands."""

    special_tokens: dict[str, str]
    chat_template: str | None
    template_path: Path


def read_tokenizer_config(model_dir: Path) -> TokenizerConfig:
    """All of it may be missing; raises ModelError for files that cannot be read."""
    config = _read_object(model_dir / _CONFIG)
    named = config
    if "added_tokens_decoder" not in config:
        named = config | _read_object(model_dir / _SPECIAL_TOKENS)
    tokens = {name: _token_text(named.get(name)) for name in _NAMES}
    path = model_dir / _TEMPLATE
    template = _read_text(path)
    if template is None:
        path = model_dir / _CONFIG
        template = _default_template(path, config.get("chat_template"))
    return TokenizerConfig(
        special_tokens={name: text for name, text in tokens.items() if text},
        chat_template=template,
        template_path=path,
    )


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(path, f"cannot be read: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(path, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(path, f"is a JSON {type(value).__name__}, not an object")
    return value


def _default_template(path: Path, entry: object) -> str | None:
    """A template, or several of which one is named `default`."""
    match entry:
        case None | str():
            return entry
        case list():
            for named in entry:
                match named:
                    case {"name": "default", "template": str(source)}:
                        return source
            return None
    raise ModelError(path, f"chat_template is a {type(entry).__name__}, not text or a list")


def _token_text(entry: object) -> str | None:
    """A special token is written as text or as an object with `content`."""
    match entry:
        case str():
            return entry
        case {"content": str(content)}:
            return content
    return None
