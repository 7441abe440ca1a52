"""The text of one choice as it grows: decoder, stop strings, and what is held back.

Lives here: which text and which tokens go out with a token. Not here: requests, sockets
(`process.py`).
"""

from __future__ import annotations

from lightllm_server.detok.decoder import Decoder, TokenTexts
from lightllm_server.detok.stop_strings import StopMatcher
from lightllm_server.messages import ChoiceText, Opened, SampledToken, TopLogprob

__all__ = ["ChoiceStream", "tops_with_texts"]


def tops_with_texts(
    tops: tuple[TopLogprob, ...], texts: TokenTexts, *, with_bytes: bool = False
) -> tuple[TopLogprob, ...]:
    """The alternatives with the text of each, and its bytes."""
    return tuple(
        TopLogprob(
            t.token_id,
            t.logprob,
            texts.text(t.token_id),
            texts.bytes_of(t.token_id) if with_bytes else None,
        )
        for t in tops
    )


class ChoiceStream:
    """Turns the tokens of one choice into its pieces of text.

    With `every_token`, a token goes out when all of its text may; otherwise text goes out by the
    character, with the tokens since the last piece.
    """

    def __init__(self, texts: TokenTexts, opened: Opened) -> None:
        options = opened.text
        self._texts = texts
        self._every_token = options.every_token
        self._with_bytes = options.token_bytes
        self._min_new_tokens = options.min_new_tokens
        self._include_stop = options.include_stop
        self._decoder = Decoder(
            texts, opened.prompt_ids, skip_special_tokens=options.skip_special_tokens
        )
        self._matcher = StopMatcher(options.stop) if any(options.stop) else None
        self._num_tokens = 0
        # characters decoded and gone out; the text between is in one of the two below
        self._num_chars = 0
        self._num_out = 0
        self._held_text = ""
        self._held_tokens: list[tuple[SampledToken, str]] = []
        self.finished = False
        # a stop string ended the choice before the router knew
        self.cut_short = False

    def add(self, token: SampledToken) -> ChoiceText | None:
        """The piece that goes out now; None if there is nothing to say. Not after the end."""
        assert not self.finished, f"choice {token.choice} of {token.request_id} has finished"
        self._num_tokens += 1
        text = "" if token.is_stop_token else self._decoder.add(token.token_id)
        finish_reason = token.finish_reason
        matched_stop = self._texts.text(token.token_id) if token.is_stop_token else None
        if finish_reason is not None:
            text += self._decoder.flush()
        self._num_chars += len(text)
        end = self._num_chars
        if self._matcher is not None and self._num_tokens < self._min_new_tokens:
            self._matcher.skip(text)
        elif self._matcher is not None:
            match = self._matcher.feed(text)
            if match is not None:
                self.cut_short = finish_reason is None
                finish_reason, matched_stop = "stop", match.stop
                end = match.end if self._include_stop else match.start
            elif finish_reason is None:
                end = self._matcher.num_safe
        self.finished = finish_reason is not None
        text, tokens, token_texts = self._release(token, text, end)
        if not text and not tokens and not self.finished:
            return None
        return ChoiceText(
            request_id=token.request_id,
            choice=token.choice,
            text=text,
            num_tokens=self._num_tokens,
            token_ids=tuple([held.token_id for held in tokens]),
            logprobs=tuple([held.logprob for held in tokens]),
            token_texts=token_texts,
            special=tuple([held.token_id in self._texts.special_ids for held in tokens]),
            tops=self._tops(tokens),
            finish_reason=finish_reason,
            matched_stop=matched_stop,
            token_bytes=tuple(map(self._bytes_of, tokens)) if self._with_bytes else (),
        )

    def _bytes_of(self, token: SampledToken) -> bytes | None:
        return b"" if token.is_stop_token else self._decoder.bytes_of(token.token_id)

    def _release(
        self, token: SampledToken, text: str, end: int
    ) -> tuple[str, list[SampledToken], tuple[str, ...]]:
        """Hold the token; let out the text before character `end`, tokens and their texts."""
        self._held_tokens.append((token, text))
        if not self._every_token:
            return self._release_text(text, end)
        tokens: list[SampledToken] = []
        texts: list[str] = []
        for held_token, held_text in self._held_tokens:
            size = end - self._num_out
            if len(held_text) > size and not self.finished:
                break
            tokens.append(held_token)
            texts.append(held_text[:size])
            self._num_out += len(texts[-1])
        del self._held_tokens[: len(tokens)]
        return "".join(texts), tokens, tuple(texts)

    def _release_text(self, text: str, end: int) -> tuple[str, list[SampledToken], tuple[str, ...]]:
        held = self._held_text + text
        size = end - self._num_out
        if not size and not self.finished:
            self._held_text = held
            return "", [], ()
        self._held_text = held[size:]
        self._num_out = end
        tokens = [token for token, _ in self._held_tokens]
        self._held_tokens.clear()
        return held[:size], tokens, ()

    def _tops(self, tokens: list[SampledToken]) -> tuple[tuple[TopLogprob, ...], ...]:
        if not any(token.tops for token in tokens):
            return ()
        return tuple(
            [
                tops_with_texts(token.tops, self._texts, with_bytes=self._with_bytes)
                for token in tokens
            ]
        )
