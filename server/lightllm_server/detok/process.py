"""The detok process: token ids of all requests in, their texts out, one message per step.

Every request leaves with exactly one `Ended`: the router's, or one that says that its text could
not be made. What comes for a request after that is ignored.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from lightllm_server import channels
from lightllm_server.config import ServerConfig
from lightllm_server.detok.choice import ChoiceStream, tops_with_texts
from lightllm_server.detok.decoder import Decoder, TokenTexts
from lightllm_server.messages import (
    ChoiceText,
    Codec,
    DetokToApi,
    DetokToRouter,
    Ended,
    Opened,
    PromptLogprobs,
    PromptText,
    RouterToDetok,
    SampledToken,
    Stopped,
    TextBatch,
    TokenBatch,
)
from lightllm_server.status_page import Field, State, StatusPage
from lightllm_server.tokenizer import load_tokenizer

__all__ = ["Detokenizer", "run"]

_log = logging.getLogger(__name__)
_WAIT_MS = 500


@dataclass(slots=True)
class _Request:
    opened: Opened
    choices: dict[int, ChoiceStream] = field(default_factory=dict)


@dataclass(slots=True)
class _Output:
    prompts: list[PromptText] = field(default_factory=list)
    choices: list[ChoiceText] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    stopped: list[Stopped] = field(default_factory=list)


class Detokenizer:
    """All open requests; knows no sockets."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._requests: dict[int, _Request] = {}

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    def handle(self, batch: TokenBatch) -> tuple[TextBatch | None, list[Stopped]]:
        """What to tell the api (None: nothing) and the router."""
        out = _Output()
        for opened in batch.opened:
            self._guarded(self._open, opened, out)
        for token in batch.tokens:
            self._guarded(self._add, token, out)
        for ended in batch.ended:
            if self._requests.pop(ended.request_id, None) is not None:
                out.ended.append(ended)
        if not (out.prompts or out.choices or out.ended):
            return None, out.stopped
        texts = TextBatch(
            prompts=tuple(out.prompts), choices=tuple(out.choices), ended=tuple(out.ended)
        )
        return texts, out.stopped

    def _guarded(self, handler: Any, item: Opened | SampledToken, out: _Output) -> None:
        """Let an error end its own request only."""
        try:
            handler(item, out)
        except Exception:
            _log.exception("request %d: cannot make its text", item.request_id)
            request = self._requests.pop(item.request_id)
            error = "the output could not be turned into text"
            out.ended.append(Ended(item.request_id, "failed", error))
            for choice in range(request.opened.n):
                out.stopped.append(Stopped(request_id=item.request_id, choice=choice))

    def _open(self, opened: Opened, out: _Output) -> None:
        self._requests[opened.request_id] = _Request(opened)
        if opened.prompt_logprobs is not None:
            prompt = self._prompt_texts(opened, opened.prompt_logprobs)
            out.prompts.append(PromptText(opened.request_id, prompt))

    def _prompt_texts(self, opened: Opened, prompt: PromptLogprobs) -> PromptLogprobs:
        decoder = Decoder(self._texts, skip_special_tokens=opened.text.skip_special_tokens)
        texts = [decoder.add(token_id) for token_id in opened.prompt_ids]
        if texts:
            texts[-1] += decoder.flush()
        tops = tuple(tops_with_texts(tops, self._texts) for tops in prompt.tops)
        return PromptLogprobs(prompt.logprobs, tops, tuple(texts))

    def _add(self, token: SampledToken, out: _Output) -> None:
        request = self._requests.get(token.request_id)
        if request is None:
            return
        stream = request.choices.get(token.choice)
        if stream is None:
            stream = request.choices[token.choice] = ChoiceStream(self._texts, request.opened)
        if stream.finished:
            return
        piece = stream.add(token)
        if piece is not None:
            out.choices.append(piece)
        if stream.cut_short:
            out.stopped.append(Stopped(request_id=token.request_id, choice=token.choice))


def run(config: ServerConfig, run_dir: Path, page: StatusPage) -> None:
    """Serve until the process is ended; raises ModelError, and ChannelError if a peer is gone."""
    row = page["detok"]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    receiver = channels.Receiver(
        context,
        channels.socket_path(run_dir, channels.DETOK_FROM_ROUTER),
        Codec[TokenBatch](RouterToDetok),
    )
    to_api = channels.Sender(
        context,
        channels.socket_path(run_dir, channels.API_FROM_DETOK),
        Codec[TextBatch](DetokToApi),
    )
    to_router = channels.Sender(
        context,
        channels.socket_path(run_dir, channels.ROUTER_FROM_DETOK),
        Codec[Stopped](DetokToRouter),
    )
    tokenizer = load_tokenizer(Path(config.engine.model_dir), run_dir)
    detokenizer = Detokenizer(TokenTexts(tokenizer.backend))
    row.state = State.READY
    while True:
        batch = receiver.receive(_WAIT_MS)
        row[Field.REJECTED_FRAMES] = receiver.num_rejected
        if batch is None:
            continue
        row[Field.WORK] = 1
        texts, stopped = detokenizer.handle(batch)
        # the router first: it frees slots
        for message in stopped:
            to_router.send(message)
        if texts is not None:
            to_api.send(texts)
        row.tick()
        row[Field.WORK] = 0
