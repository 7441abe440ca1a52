"""Chat messages to token ids: special tokens of the template count, those in the messages do not.

The template's text and the messages' text arrive as one rendered string, so both are marked:
1. before rendering, each special token's text inside a message becomes one private-use character
   (one, so that no trimming or slicing in the template can cut it open);
2. after rendering, each special token's text left is the template's own and becomes a stand-in: a
   random string that is an added token of the same kind, but not a special one;
3. the private-use characters turn back into what the user wrote, and the whole is encoded at once
   with special tokens switched off; the stand-ins' ids are mapped to those of the special tokens.
So messages without such text give the ids that transformers gives, whatever the vocabulary's rules
for spaces at the start of a text.

Lives here: the marking. Not here: rendering (`chat_template.py`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from tokenizers import AddedToken, Tokenizer

from lightllm_server.chat_template import ChatTemplate, TemplateFailedError
from lightllm_server.messages import ChatMessage

__all__ = ["ChatTokenizer"]

# supplementary private use areas
_PRIVATE_USE = (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE))
_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function", "ipython"))


class ChatTokenizer:
    """Adds its stand-ins to `backend` and switches its special tokens off and on while encoding."""

    def __init__(
        self,
        backend: Tokenizer,
        template: ChatTemplate,
        time_limit: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`time_limit` is entered around rendering; what it raises comes out of `encode`."""
        self._backend = backend
        self._template = template
        self._time_limit = time_limit
        added = backend.get_added_tokens_decoder()
        special = {
            token.content: i for i, token in added.items() if token.special and token.content
        }
        nonce = secrets.token_hex(8)
        # letters and digits: no normalizer changes them, and the last letter ends the number
        self._stand_ins = {text: f"q{nonce}z{i}q" for text, i in special.items()}
        backend.add_tokens(
            [_stand_in(added[i], self._stand_ins[text]) for text, i in special.items()]
        )
        self._ids = {backend.token_to_id(self._stand_ins[text]): i for text, i in special.items()}
        self._texts = {stand_in: text for text, stand_in in self._stand_ins.items()}
        self._stand_in = re.compile(f"q{nonce}z[0-9]+q")
        # others that could match at the same place only keep it
        self._added = re.compile(_any_of({token.content for token in added.values()}))
        self._special = re.compile(_any_of(special))

    def encode(
        self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of the rendered chat; raises TemplateFailedError."""
        for message in messages:
            # a template may build a special token around it: '<|' + role + '|>'
            if message.role not in _ROLES:
                raise TemplateFailedError(
                    f"role {message.role!r} is none of {', '.join(sorted(_ROLES))}"
                )
        hidden = self._private_characters(messages)
        shown = [self._shown(message, hidden) for message in messages]
        with self._time_limit():
            rendered = self._template.render(shown, add_generation_prompt=add_generation_prompt)
        text = self._added.sub(lambda match: self._stand_ins.get(match[0], match[0]), rendered)
        for special, character in hidden.items():
            text = text.replace(character, special)
        self._backend.encode_special_tokens = True
        try:
            return self._encode_marked(text)
        finally:
            self._backend.encode_special_tokens = False

    def _encode_marked(self, text: str) -> list[int]:
        while True:
            encoding = self._backend.encode(text, add_special_tokens=False)
            ids = [self._ids.get(token_id, token_id) for token_id in encoding.ids]
            places = list(self._stand_in.finditer(text))
            found = [i for i, token_id in enumerate(encoding.ids) if token_id in self._ids]
            if len(found) >= len(places):
                return ids
            # a token looked for in normalized text is not one everywhere: there it is plain text
            spans = [encoding.offsets[i] for i in found]
            covered = {index for start, end in spans for index in range(start, end)}
            unmatched = {place.start() for place in places} - covered
            assert unmatched, "a stand-in was found and is not counted"
            text = self._stand_in.sub(partial(self._plain_if, unmatched), text)

    def _plain_if(self, starts: set[int], place: re.Match[str]) -> str:
        return self._texts[place[0]] if place.start() in starts else place[0]

    def _shown(self, message: ChatMessage, hidden: dict[str, str]) -> dict[str, str]:
        shown = {"role": message.role, "content": self._hide(message.content, hidden)}
        # templates ask whether there is one
        return {**shown, "name": self._hide(message.name, hidden)} if message.name else shown

    def _hide(self, text: str, hidden: dict[str, str]) -> str:
        return self._special.sub(lambda match: hidden[match[0]], text) if hidden else text

    def _private_characters(self, messages: Sequence[ChatMessage]) -> dict[str, str]:
        """A character for each special token's text in the messages, used nowhere else."""
        texts = [text for message in messages for text in (message.content, message.name)]
        found = {special for text in texts for special in self._special.findall(text)}
        if not found:
            return {}
        used = set(self._template.source).union(*texts)
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        hidden = dict(zip(sorted(found), free, strict=False))
        if len(hidden) < len(found):
            raise TemplateFailedError("the messages use all private-use characters of Unicode")
        return hidden


def _stand_in(token: AddedToken, text: str) -> AddedToken:
    return AddedToken(
        text,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=False,
    )


def _any_of(texts: Iterable[str]) -> str:
    """A regex for the longest of `texts` at a place, which does not try them one by one."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text[:1], []).append(text)
    optional = "?" if groups.pop("", None) else ""
    branches = []
    for group in groups.values():
        size = _common_length(min(group), max(group))
        rest = _any_of(text[size:] for text in group) if len(group) > 1 else ""
        branches.append(re.escape(group[0][:size]) + rest)
    return f"(?:{'|'.join(branches)}){optional}" if branches else "(?!)"


def _common_length(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
