"""Incremental detokenizing: token ids in, text out, as soon as its characters are complete.

Byte-level BPE and sentencepiece-like vocabularies (with or without byte fallback) are read as
tables from token id to bytes; a token then costs one look-up and one UTF-8 decoding, whatever came
before. Other decoders (WordPiece, …) fall back to decoding a short window twice per token.

The pieces of a text concatenate to what `Tokenizer.decode` gives for prompt and output together,
less what it gives for the prompt. One exception, which a stream cannot avoid: `Tokenizer.decode`
turns a whole run of byte-fallback tokens into U+FFFD if any byte of it is wrong, also characters
that were complete; here the complete ones stay.

Lives here: ids to text. Not here: stop strings (`stop_strings.py`).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer

__all__ = ["Decoder", "TokenTexts"]

# longest incomplete UTF-8 character
_MAX_PENDING_BYTES = 3
_WINDOW = 8


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError), f"used for encoding: {error}"
    return "\ufffd" * (error.end - error.start), error.end


# as tokenizers' ByteFallback does; its ByteLevel gives one U+FFFD per sequence ("replace")
codecs.register_error("lightllm_replace_each_byte", _replace_each_byte)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: character → byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    stand_ins = {chr(byte): byte for byte in printable}
    return stand_ins | {chr(256 + index): byte for index, byte in enumerate(others)}


class _Rules(Protocol):
    """How a tokenizer's decoder turns one token into bytes."""

    errors: str
    # leading characters that the start of the whole text loses
    strip: str
    num_strip: int

    def to_bytes(self, token: str, *, first: bool) -> bytes: ...


class _ByteLevelRules:
    errors = "replace"
    strip = ""
    num_strip = 0

    def __init__(self) -> None:
        self._alphabet = _byte_level_alphabet()

    def to_bytes(self, token: str, *, first: bool) -> bytes:
        del first
        try:
            return bytes([self._alphabet[char] for char in token])
        except KeyError:
            # an added token, which is plain text
            return token.encode()


class _SentencePieceRules:
    errors = "lightllm_replace_each_byte"

    def __init__(self) -> None:
        self.replace: list[tuple[str, str]] = []
        self.drop_in_first = ""
        self.byte_fallback = False
        self.fused = False
        self.strip = ""
        self.num_strip = 0

    def to_bytes(self, token: str, *, first: bool) -> bytes:
        if first and self.drop_in_first:
            token = token.replace(self.drop_in_first, "")
        for pattern, content in self.replace:
            token = token.replace(pattern, content)
        if self.byte_fallback and len(token) == 6 and token[:3] == "<0x" and token[5] == ">":
            try:
                return bytes.fromhex(token[3:5])
            except ValueError:
                pass
        return token.encode()

    def take(self, step: dict[str, Any]) -> bool:
        """Add one step of the tokenizer's decoder; False if it is none that works per token."""
        match step:
            case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
                self.replace.append((pattern, content))
                return not self.fused and not self.byte_fallback
            case {"type": "Metaspace", "replacement": str(mark)}:
                if step.get("prepend_scheme", "always") != "never":
                    self.drop_in_first = mark
                self.replace.append((mark, " "))
                return not self.fused and not self.byte_fallback
            case {"type": "ByteFallback"}:
                self.byte_fallback = True
                return not self.fused
            case {"type": "Fuse"}:
                self.fused = True
                return True
            case {"type": "Strip", "content": str(char), "start": int(start), "stop": 0}:
                self.strip, self.num_strip = char, start
                return self.fused
        return False


def _rules(tokenizer: Tokenizer) -> _Rules | None:
    """The rules that do what the tokenizer's decoder does, or None if there are none."""
    decoder = tokenizer.decoder
    if decoder is None:
        return None
    # its pickled state is its part of tokenizer.json, without the vocabulary
    spec = json.loads(decoder.__getstate__())
    steps = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    if [step["type"] for step in steps if step["type"] != "Fuse"] == ["ByteLevel"]:
        return _ByteLevelRules()
    rules = _SentencePieceRules()
    return rules if all(rules.take(step) for step in steps) else None


class TokenTexts:
    """Token id → bytes or text, filled on use; shared by all requests."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.rules = _rules(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        # the tokenizer itself may return them with a normalizer's "▁" in front
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._pieces: dict[int, bytes | None] = {}

    def piece(self, token_id: int) -> bytes | None:
        """The token's bytes inside a text; None if no such token. Only with `rules`."""
        try:
            return self._pieces[token_id]
        except KeyError:
            piece = self._pieces[token_id] = self._make(token_id, first=False)
            return piece

    def first_piece(self, token_id: int) -> bytes | None:
        """The token's bytes at the start of a text. Only with `rules`."""
        return self._make(token_id, first=True)

    def _make(self, token_id: int, *, first: bool) -> bytes | None:
        assert self.rules is not None, "pieces of a tokenizer that has no rules"
        token = self._added.get(token_id) or self.tokenizer.id_to_token(token_id)
        return None if token is None else self.rules.to_bytes(token, first=first)

    def bytes_of(self, token_id: int) -> bytes | None:
        """The token's bytes inside a text; None if not known."""
        return None if self.rules is None else self.piece(token_id)

    def text(self, token_id: int) -> str:
        """The token alone, special ones included; U+FFFD where its bytes are no character."""
        if self.rules is None:
            text: str = self.tokenizer.decode([token_id], skip_special_tokens=False)
            return text
        return (self.piece(token_id) or b"").decode("utf-8", self.rules.errors)


class Decoder:
    """The text of one choice: `add` each token, `flush` at the end.

    `prompt_ids` are the context: they decide on leading spaces, and a character that the prompt's
    last bytes begin is completed by the output.
    """

    def __init__(
        self, texts: TokenTexts, prompt_ids: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> None:
        self._texts = texts
        self._skipped = texts.special_ids if skip_special_tokens else frozenset[int]()
        rules = texts.rules
        self._window: _Window | None = None
        if rules is None:
            self._window = _Window(texts.tokenizer, prompt_ids, skip_special_tokens)
            return
        self._errors = rules.errors
        self._strip = rules.strip
        self._num_strip = rules.num_strip
        self._pending = b""
        self._first = True
        self._read_prompt(prompt_ids)

    def _read_prompt(self, prompt_ids: Sequence[int]) -> None:
        texts = self._texts
        # the start of the text decides on leading spaces: mostly one or two tokens
        for token_id in prompt_ids:
            self.add(token_id)
            if not self._first and not self._num_strip:
                break
        tail = b""
        for token_id in reversed(prompt_ids):
            if len(tail) >= _MAX_PENDING_BYTES:
                break
            if token_id not in self._skipped:
                tail = (texts.piece(token_id) or b"") + tail
        self._pending = _incomplete_end(tail)

    def bytes_of(self, token_id: int) -> bytes | None:
        """What the token adds to the text's bytes, but for a stripped start; None if not known."""
        return b"" if token_id in self._skipped else self._texts.bytes_of(token_id)

    def add(self, token_id: int) -> str:
        """The characters that this token completes."""
        if self._window is not None:
            return self._window.add(token_id)
        if token_id in self._skipped:
            return ""
        if self._first:
            piece = self._texts.first_piece(token_id)
            self._first = piece is None
        else:
            piece = self._texts.piece(token_id)
        if not piece:
            return ""
        data = self._pending + piece
        text, consumed = codecs.utf_8_decode(data, self._errors, False)
        self._pending = data[consumed:]
        return self._strip_start(text) if self._num_strip and text else text

    def _strip_start(self, text: str) -> str:
        while self._num_strip and text.startswith(self._strip):
            text = text[len(self._strip) :]
            self._num_strip -= 1
        if text:
            self._num_strip = 0
        return text

    def flush(self) -> str:
        """What is left of an incomplete character, as U+FFFD."""
        if self._window is not None:
            return self._window.flush()
        text = self._pending.decode("utf-8", self._errors)
        self._pending = b""
        return text


def _incomplete_end(data: bytes) -> bytes:
    """The bytes at the end of `data` that begin a character and do not complete it."""
    for size in range(1, min(_MAX_PENDING_BYTES, len(data)) + 1):
        end = data[-size:]
        # from the last byte that begins a character
        if end[0] & 0xC0 != 0x80:
            _, consumed = codecs.utf_8_decode(end, "replace", False)
            return end[consumed:]
    return b""


class _Window:
    """Decoding for tokenizers whose decoder does not work per token.

    Source of the method: text-generation-inference's prefix and read offsets.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        # _ids[:_num_read] is context, whose text is out already
        self._ids = list(prompt_ids[-_WINDOW:])
        self._num_read = len(self._ids)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip)
        return text

    def add(self, token_id: int) -> str:
        self._ids.append(token_id)
        held = len(self._ids) - self._num_read
        if held < _WINDOW and self._decode(self._ids).endswith("\ufffd"):
            return ""
        return self.flush()

    def flush(self) -> str:
        before = self._decode(self._ids[: self._num_read])
        text = self._decode(self._ids)[len(before) :]
        del self._ids[: self._num_read]
        self._num_read = len(self._ids)
        return text
