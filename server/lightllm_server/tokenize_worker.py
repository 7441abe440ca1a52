"""A tokenize worker: text and chats in, token ids out, off the api's event loop.

A job that fails is answered and forgotten. The row shows a beat but no work: encoding a long text
is one call that nothing can watch from inside, and a slow job delays only the jobs behind it.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import zmq

from lightllm_server import channels
from lightllm_server.chat_template import TemplateFailedError, load_chat_template
from lightllm_server.chat_tokenizer import ChatTokenizer
from lightllm_server.config import ServerConfig
from lightllm_server.messages import (
    ApiToTokenizer,
    Codec,
    Encoded,
    EncodeFailed,
    EncodeText,
    TokenizerToApi,
)
from lightllm_server.status_page import Field, State, StatusPage
from lightllm_server.tokenizer import TextTokenizer, load_tokenizer

__all__ = ["Worker", "run", "time_limit"]

_log = logging.getLogger(__name__)
_WAIT_MS = 500
_TEMPLATE_LIMIT_S = 2.0


def _too_slow(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise TemplateFailedError(f"the chat template takes more than {_TEMPLATE_LIMIT_S:g} s")


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise TemplateFailedError in what runs longer than 2 s; on the main thread only."""
    previous = signal.signal(signal.SIGALRM, _too_slow)
    try:
        signal.setitimer(signal.ITIMER_REAL, _TEMPLATE_LIMIT_S)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class Worker:
    """Answers jobs one by one; knows no sockets."""

    def __init__(self, tokenizer: TextTokenizer, chats: ChatTokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._chats = chats

    def answer(self, job: ApiToTokenizer) -> TokenizerToApi:
        """Never raises on account of the job."""
        try:
            return Encoded(job_id=job.job_id, token_ids=tuple(self._encode(job)))
        except TemplateFailedError as error:
            return EncodeFailed(job_id=job.job_id, error=str(error))
        except Exception:
            _log.exception("job %d: cannot tokenize", job.job_id)
            return EncodeFailed(job_id=job.job_id, error="the text cannot be tokenized")

    def _encode(self, job: ApiToTokenizer) -> list[int]:
        if isinstance(job, EncodeText):
            return self._tokenizer.encode(job.text, add_special_tokens=job.add_special_tokens)
        if self._chats is None:
            raise TemplateFailedError("this model has no chat template")
        return self._chats.encode(job.messages, add_generation_prompt=job.add_generation_prompt)


def run(config: ServerConfig, run_dir: Path, page: StatusPage, index: int) -> None:
    """Serve until the process is ended; raises ModelError, and ChannelError if the api is gone."""
    # one job at a time; the workers are the parallelism
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    row = page[f"tokenize-{index}"]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    receiver = channels.Receiver(
        context,
        channels.socket_path(run_dir, channels.tokenize_socket(index)),
        Codec[ApiToTokenizer](ApiToTokenizer),
    )
    sender = channels.Sender(
        context,
        channels.socket_path(run_dir, channels.API_FROM_TOKENIZE),
        Codec[TokenizerToApi](TokenizerToApi),
    )
    model_dir = Path(config.engine.model_dir)
    tokenizer = load_tokenizer(model_dir, run_dir)
    template = load_chat_template(model_dir)
    chats = None if template is None else ChatTokenizer(tokenizer.backend, template, time_limit)
    worker = Worker(tokenizer, chats)
    row.state = State.READY
    while True:
        job = receiver.receive(_WAIT_MS)
        row[Field.REJECTED_FRAMES] = receiver.num_rejected
        if job is not None:
            sender.send(worker.answer(job))
            row.tick()
