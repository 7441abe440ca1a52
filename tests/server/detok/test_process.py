"""The detokenizer over whole batches, and as a process between real sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from lightllm_server import channels
from lightllm_server.channels import Receiver, Sender
from lightllm_server.detok.decoder import TokenTexts
from lightllm_server.detok.process import Detokenizer
from lightllm_server.messages import (
    Codec,
    DetokToApi,
    DetokToRouter,
    Ended,
    Opened,
    PromptLogprobs,
    RouterToDetok,
    SampledToken,
    Stopped,
    TextBatch,
    TextOptions,
    TokenBatch,
    TopLogprob,
)
from lightllm_server.status_page import Field, State, StatusPage
from small_tokenizers import byte_level

TOKENIZER = byte_level()


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


@pytest.fixture
def detokenizer():
    return Detokenizer(TokenTexts(TOKENIZER))


def opened(request_id: int, *, n: int = 1, **options) -> Opened:
    return Opened(request_id, (0,), n, TextOptions(**options))


def tokens(request_id: int, text: str, choice: int = 0) -> tuple[SampledToken, ...]:
    return tuple(SampledToken(request_id, choice, token_id, 0.0) for token_id in ids_of(text))


def test_one_batch_opens_streams_and_ends(detokenizer):
    [the] = ids_of("the")
    batch = TokenBatch(
        opened=(opened(1),),
        tokens=(SampledToken(1, 0, the, -0.25, "length"),),
        ended=(Ended(1, "finished", cached_tokens=3),),
    )
    out, stopped = detokenizer.handle(batch)
    [piece] = out.choices
    assert (piece.text, piece.finish_reason, piece.token_ids) == ("the", "length", (the,))
    assert out.ended == batch.ended
    assert stopped == []
    assert detokenizer.num_requests == 0


def test_a_stop_string_ends_the_choice_once_and_the_end_passes_through(detokenizer):
    first = TokenBatch(opened=(opened(1, n=2, stop=("dog",)),), tokens=tokens(1, "the dog sleeps"))
    out, stopped = detokenizer.handle(first)
    assert "".join(piece.text for piece in out.choices) == "the "
    assert out.choices[-1].matched_stop == "dog"
    assert stopped == [Stopped(request_id=1, choice=0)]
    # the other choice goes on, tokens still on their way are dropped
    out, stopped = detokenizer.handle(
        TokenBatch(tokens=tokens(1, " over the dog") + tokens(1, "the dogs", choice=1))
    )
    assert {piece.choice for piece in out.choices} == {1}
    assert stopped == [Stopped(request_id=1, choice=1)]
    out, stopped = detokenizer.handle(TokenBatch(ended=(Ended(1, "finished"),)))
    assert (out.ended, stopped) == ((Ended(1, "finished"),), [])


def test_unknown_requests_and_second_ends_are_ignored(detokenizer):
    detokenizer.handle(TokenBatch(opened=(opened(1),), ended=(Ended(1, "aborted"),)))
    late = TokenBatch(tokens=tokens(1, "late") + tokens(2, "?"), ended=(Ended(1, "finished"),))
    assert detokenizer.handle(late) == (None, [])


def test_an_empty_step_says_nothing(detokenizer):
    half = ids_of("€")[0]
    detokenizer.handle(TokenBatch(opened=(opened(1),)))
    assert detokenizer.handle(TokenBatch(tokens=(SampledToken(1, 0, half, 0.0),))) == (None, [])


def test_choices_do_not_share_bytes(detokenizer):
    half, rest = ids_of("€")[0], ids_of("€")[1:]
    detokenizer.handle(TokenBatch(opened=(opened(1, n=2),)))
    out, _ = detokenizer.handle(
        TokenBatch(
            tokens=(
                SampledToken(1, 0, half, 0.0),
                SampledToken(1, 1, half, 0.0, "length"),
                *(SampledToken(1, 0, token_id, 0.0) for token_id in rest),
            )
        )
    )
    assert [(piece.choice, piece.text) for piece in out.choices] == [(1, "\ufffd"), (0, "€")]


def test_prompt_logprobs_get_texts_that_make_up_the_prompt(detokenizer):
    prompt = tuple(TOKENIZER.encode("über 👍").ids)
    tops = tuple((TopLogprob(token_id, -1.0),) for token_id in prompt)
    given = PromptLogprobs((None, *([-1.0] * (len(prompt) - 1))), tops)
    batch = TokenBatch(
        opened=(Opened(1, prompt, 1, TextOptions(), given),), ended=(Ended(1, "finished"),)
    )
    out, _ = detokenizer.handle(batch)
    [answer] = out.prompts
    assert len(answer.prompt_logprobs.texts) == len(prompt)
    assert "".join(answer.prompt_logprobs.texts) == "über 👍"
    assert answer.prompt_logprobs.logprobs == given.logprobs
    assert answer.prompt_logprobs.tops[0][0].text == "<s>"


def test_an_error_ends_its_own_request_only(detokenizer, monkeypatch, caplog):
    from lightllm_server.detok import process

    class Broken(process.ChoiceStream):
        def add(self, token):
            if token.request_id == 1:
                raise RuntimeError("broken")
            return super().add(token)

    monkeypatch.setattr(process, "ChoiceStream", Broken)
    batch = TokenBatch(
        opened=(opened(1, n=2), opened(2)),
        tokens=tokens(1, "a") + tokens(2, "the") + tokens(1, "b", choice=1),
    )
    out, stopped = detokenizer.handle(batch)
    assert [piece.text for piece in out.choices] == ["the"]
    assert [(end.request_id, end.outcome) for end in out.ended] == [(1, "failed")]
    assert stopped == [Stopped(request_id=1, choice=0), Stopped(request_id=1, choice=1)]
    assert "broken" in caplog.text
    assert detokenizer.handle(TokenBatch(ended=(Ended(1, "finished"),))) == (None, [])


RUN = """
import sys
from pathlib import Path
from lightllm_server.config import EngineConfig, ServerConfig
from lightllm_server.detok.process import run
from lightllm_server.status_page import StatusPage
heavy = {"torch", "transformers", "numpy"} & set(sys.modules)
assert not heavy, heavy
run_dir = Path(sys.argv[1])
config = ServerConfig(engine=EngineConfig(model_dir=sys.argv[1]))
run(config, run_dir, StatusPage(run_dir / "status"))
"""


@pytest.fixture
def process(tmp_path):
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    page = StatusPage.create(tmp_path / "status", ["detok"])
    child = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)])
    yield tmp_path, page["detok"], child
    child.kill()
    child.wait()


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_the_process_streams_and_stays_small(process):
    run_dir, row, child = process
    context = zmq.Context()

    def path(name):
        return channels.socket_path(run_dir, name)

    from_detok = Receiver(context, path(channels.API_FROM_DETOK), Codec[TextBatch](DetokToApi))
    stops = Receiver(context, path(channels.ROUTER_FROM_DETOK), Codec[Stopped](DetokToRouter))
    sender = Sender(context, path(channels.DETOK_FROM_ROUTER), Codec[TokenBatch](RouterToDetok))
    noise = Sender(context, path(channels.DETOK_FROM_ROUTER), Codec[dict](dict))
    try:
        noise.send({"type": "TokenBatch", "tokens": "no"})
        sender.send(TokenBatch(opened=(opened(1, stop=("dog",)),)))
        text = ""
        for token in tokens(1, "the lazy dog sleeps"):
            sender.send(TokenBatch(tokens=(token,)))
        while not text.endswith("lazy "):
            batch = from_detok.receive(10_000)
            assert batch is not None, f"silence after {text!r}"
            text += "".join(piece.text for piece in batch.choices)
        assert text == "the lazy "
        assert stops.receive(5000) == Stopped(request_id=1, choice=0)
        sender.send(TokenBatch(ended=(Ended(1, "finished"),)))
        batch = from_detok.receive(5000)
        assert batch.ended == (Ended(1, "finished"),)
        assert row.state is State.READY
        assert row[Field.REJECTED_FRAMES] == 1
        assert resident_bytes(child.pid) < 200e6
    finally:
        for channel in (from_detok, stops, sender, noise):
            channel.close()
        context.term()
