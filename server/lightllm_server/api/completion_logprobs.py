"""The `logprobs` object of `/v1/completions`: columns over tokens, with offsets into the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightllm_server.api.call import Completion
from lightllm_server.api.openai_reply import loggable
from lightllm_server.messages import ChoiceText, PromptLogprobs, TopLogprob

__all__ = ["CompletionLogprobs", "merged"]


class CompletionLogprobs:
    """Of one choice, piece by piece; `text_offset` counts from the start of its text."""

    def __init__(self) -> None:
        self._offset = 0

    def prompt(self, prompt: PromptLogprobs) -> dict[str, Any]:
        """The echoed prompt's part; its first token has no logprob."""
        tops = prompt.tops or ((),) * len(prompt.texts)
        return self._columns(prompt.texts, prompt.logprobs, tops)

    def piece(self, piece: Completion | ChoiceText) -> dict[str, Any]:
        tops = piece.tops or ((),) * len(piece.token_ids)
        return self._columns(piece.token_texts, piece.logprobs, tops)

    def _columns(
        self,
        texts: Sequence[str],
        logprobs: Sequence[float | None],
        tops: Sequence[tuple[TopLogprob, ...]],
    ) -> dict[str, Any]:
        offsets, best = [], []
        for text, logprob, top in zip(texts, logprobs, tops, strict=True):
            offsets.append(self._offset)
            self._offset += len(text)
            entries = {entry.text: loggable(entry.logprob) for entry in top}
            # the chosen token is among them, also where it is none of the best
            if logprob is not None:
                entries.setdefault(text, loggable(logprob))
            best.append(entries or None)
        return {
            "tokens": list(texts),
            "token_logprobs": [None if value is None else loggable(value) for value in logprobs],
            "top_logprobs": best,
            "text_offset": offsets,
        }


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The columns of both, one after the other."""
    return {name: [*column, *second[name]] for name, column in first.items()}
