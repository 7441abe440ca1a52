"""A server whose router is a fake without a model: the real supervisor, api, detok and tokenizers.

Run as a script with the options of the server; each child runs this script too. The fake answers
with the prompt's own tokens, over and over, one per step for each running request, so that every
answer tells which prompt it belongs to. Environment: FAKE_STEP_MS (time of a step), FAKE_RUNNING
(requests that run at once). A prompt that starts with "FAIL" fails after two tokens.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from lightllm_server import channels, cli, processes, supervisor
from lightllm_server.config import ServerConfig
from lightllm_server.engine_info import EngineInfo, write_engine_info
from lightllm_server.messages import (
    Abort,
    ApiToRouter,
    Codec,
    DetokToRouter,
    Ended,
    Generate,
    Opened,
    PromptLogprobs,
    RouterToDetok,
    SampledToken,
    TokenBatch,
    TopLogprob,
)
from lightllm_server.status_page import Field, State, StatusPage

__all__ = ["COMMAND", "FAIL_IDS", "engine_info", "main"]

COMMAND = (sys.executable, __file__)
VOCAB = 261


@dataclass
class _Request:
    generate: Generate
    started_ns: int = 0
    num_tokens: int = 0
    open_choices: set[int] = field(default_factory=set)


class _Fake:
    def __init__(self, row) -> None:
        self.row = row
        self.waiting: list[_Request] = []
        self.running: dict[int, _Request] = {}
        self.limit = int(os.environ.get("FAKE_RUNNING", "64"))
        self.opened, self.tokens, self.ended = [], [], []

    def add(self, message: Generate) -> None:
        self.waiting.append(_Request(message))

    def abort(self, request_id: int) -> None:
        if request_id in self.running:
            self._end(self.running.pop(request_id), "aborted")
        for request in [r for r in self.waiting if r.generate.request_id == request_id]:
            self.waiting.remove(request)
            self.row.add(Field.ENDED_UNSTARTED)
            self.row.add(Field.ENDED_UNSTARTED_TOKENS, len(request.generate.prompt_ids))
            self._open(request)
            self._end(request, "aborted")

    def stopped(self, request_id: int, choice: int) -> None:
        request = self.running.get(request_id)
        if request is not None:
            request.open_choices.discard(choice)
            self._end_if_over(request)

    def step(self) -> TokenBatch:
        while self.waiting and len(self.running) < self.limit:
            self._start(self.waiting.pop(0))
        for request in list(self.running.values()):
            self._advance(request)
        self.row[Field.RUNNING] = len(self.running)
        self.row[Field.SLOTS_USED] = sum(
            len(r.generate.prompt_ids) + r.num_tokens for r in self.running.values()
        )
        batch = TokenBatch(
            opened=tuple(self.opened), tokens=tuple(self.tokens), ended=tuple(self.ended)
        )
        self.opened, self.tokens, self.ended = [], [], []
        return batch

    def _open(self, request: _Request) -> None:
        message = request.generate
        logprobs = None
        if message.sampling.prompt_logprobs is not None:
            values = (None, *(-i / 100 for i in range(1, len(message.prompt_ids))))
            tops = tuple(
                () if i == 0 else (TopLogprob(ids, -i / 100),)
                for i, ids in enumerate(message.prompt_ids)
            )
            logprobs = PromptLogprobs(values, tops)
        self.opened.append(
            Opened(
                message.request_id, message.prompt_ids, message.sampling.n, message.text, logprobs
            )
        )

    def _start(self, request: _Request) -> None:
        message = request.generate
        request.started_ns = time.monotonic_ns()
        request.open_choices = set(range(message.sampling.n))
        self.row.add(Field.STARTED)
        self.row.add(Field.STARTED_TOKENS, len(message.prompt_ids))
        self.running[message.request_id] = request
        self._open(request)

    def _advance(self, request: _Request) -> None:
        message, sampling = request.generate, request.generate.sampling
        if message.prompt_ids[: len(FAIL_IDS)] == FAIL_IDS and request.num_tokens == 2:
            del self.running[message.request_id]
            self._end(request, "failed", "the fake failed on purpose")
            return
        token = message.prompt_ids[request.num_tokens % len(message.prompt_ids)]
        request.num_tokens += 1
        stop = token in sampling.stop_token_ids
        over = stop or request.num_tokens == sampling.max_new_tokens
        reason = ("stop" if stop else "length") if over else None
        tops = tuple(
            TopLogprob((token + i) % VOCAB, -0.5 - i) for i in range(sampling.logprobs or 0)
        )
        for choice in sorted(request.open_choices):
            self.tokens.append(
                SampledToken(message.request_id, choice, token, -0.5, reason, stop, tops)
            )
        if over:
            request.open_choices.clear()
        self._end_if_over(request)

    def _end_if_over(self, request: _Request) -> None:
        if not request.open_choices:
            self.running.pop(request.generate.request_id, None)
            self._end(request, "finished")

    def _end(self, request: _Request, outcome: str, error: str = "") -> None:
        self.ended.append(Ended(request.generate.request_id, outcome, error, 0, request.started_ns))


# what the tiny byte-level tokenizer makes of "FAIL"
FAIL_IDS = (37, 32, 40, 43)


def run(config: ServerConfig, run_dir: Path, page: StatusPage) -> None:
    row = page["router"]
    context = zmq.Context()
    from_api = channels.Receiver(
        context, channels.socket_path(run_dir, channels.ROUTER_FROM_API), Codec(ApiToRouter)
    )
    from_detok = channels.Receiver(
        context, channels.socket_path(run_dir, channels.ROUTER_FROM_DETOK), Codec(DetokToRouter)
    )
    to_detok = channels.Sender(
        context, channels.socket_path(run_dir, channels.DETOK_FROM_ROUTER), Codec(RouterToDetok)
    )
    write_engine_info(run_dir, engine_info(config))
    row[Field.SLOTS_TOTAL] = config.engine.max_total_token_num or 65536
    fake = _Fake(row)
    row[Field.MAX_RUNNING] = fake.limit
    row.state = State.READY
    step_s = float(os.environ.get("FAKE_STEP_MS", "1")) / 1000
    while True:
        timeout_ms = 0 if fake.running or fake.waiting else 500
        channels.wait_any(from_api, from_detok, timeout_ms=timeout_ms)
        for message in from_api.receive_all():
            if isinstance(message, Abort):
                fake.abort(message.request_id)
            else:
                fake.add(message)
        for message in from_detok.receive_all():
            fake.stopped(message.request_id, message.choice)
        if fake.running or fake.waiting:
            time.sleep(step_s)
        batch = fake.step()
        row.tick()
        if batch.opened or batch.tokens or batch.ended:
            to_detok.send(batch)


def engine_info(config: ServerConfig) -> EngineInfo:
    """Of an engine of `config` whose model is the tiny LLaMA."""
    return EngineInfo(
        family="llama",
        architecture="LlamaForCausalLM",
        device="cpu",
        dtype="float32",
        weight_dtype="float32",
        kv_dtype="float32",
        kv_dtype_reason="fake",
        tp=1,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=VOCAB,
        eos_ids=(257,),
        max_total_token_num=config.engine.max_total_token_num or 65536,
        max_req_total_len=config.router.max_req_total_len or 4096,
        running_max_req_size=config.router.running_max_req_size,
        batch_max_tokens=512,
        kv_bytes_per_token=512,
        weight_bytes=0,
        versions={"lightllm": "0"},
    )


def main() -> int:
    if "--role" in sys.argv:
        processes.ROLES["router"] = "__main__:run"
        processes.main()
    supervisor.serve = functools.partial(supervisor.serve, entry=COMMAND)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
