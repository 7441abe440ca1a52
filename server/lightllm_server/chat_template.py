"""The model's chat template, rendered as transformers renders it, in a sandbox.

The template comes with the model, never from a client. Rendering is bounded in output here and in
time by the tokenize worker.
Lives here: messages to text. Not here: text to tokens (`chat_tokenizer.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lightllm_server.errors import ModelError
from lightllm_server.tokenizer_config import read_tokenizer_config

__all__ = ["ChatTemplate", "TemplateFailedError", "load_chat_template"]

_SPARE_OUTPUT: Final = 64 * 1024


class TemplateFailedError(Exception):
    """The messages cannot be rendered; the text may be shown to the client."""


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # jinja's own filter escapes HTML
    allowed = {key: options[key] for key in ("indent", "separators", "sort_keys") if key in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, **allowed)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled template with the model's named special tokens."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raise jinja2.TemplateSyntaxError if it is none."""
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._template = _environment().from_string(source)

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt's text, at most 4 × the input + 64 KiB; raises TemplateFailedError."""
        num_input = sum(len(value) for message in messages for value in message.values())
        limit = 4 * num_input + _SPARE_OUTPUT
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            ):
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise TemplateFailedError(
                        f"the chat template gives more than {limit} characters"
                    )
        except jinja2.TemplateError as error:
            raise TemplateFailedError(f"the chat template refuses the messages: {error}") from error
        except (
            ArithmeticError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise TemplateFailedError(
                f"the chat template fails on the messages: {error}"
            ) from error
        return "".join(pieces)


def load_chat_template(model_dir: Path) -> ChatTemplate | None:
    """The default template of a model directory, None if it has none; raises ModelError."""
    config = read_tokenizer_config(model_dir)
    if config.chat_template is None:
        return None
    try:
        return ChatTemplate(config.chat_template, config.special_tokens)
    except jinja2.TemplateError as error:
        cause = f"the chat template is not valid jinja: {error}"
        raise ModelError(config.template_path, cause) from error
