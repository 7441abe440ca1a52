"""Every message survives the wire, and nothing else does."""

from __future__ import annotations

import pickle
import random
import typing
from typing import get_args

import msgspec
import pytest

from lightllm_server import messages
from lightllm_server.messages import (
    Abort,
    ChatMessage,
    ChoiceText,
    Codec,
    EncodeChat,
    Encoded,
    EncodeFailed,
    EncodeText,
    Ended,
    Generate,
    Opened,
    PromptLogprobs,
    PromptText,
    RankStep,
    SampledToken,
    SamplingParams,
    Stopped,
    TextBatch,
    TextOptions,
    TokenBatch,
    TopLogprob,
)

HOPS = {
    name: getattr(messages, name)
    for name in (
        "ApiToTokenizer",
        "TokenizerToApi",
        "ApiToRouter",
        "RouterToDetok",
        "DetokToApi",
        "DetokToRouter",
        "RankToRank",
    )
}
TOPS = (TopLogprob(5, -0.5, "the"), TopLogprob(6, -2.5, "", b"\xe2\x82"))
PROMPT = PromptLogprobs((None, -1.25), ((), TOPS), ("a", "b—👍"))
OPTIONS = TextOptions(stop=("\n\n", "👍"), include_stop=True, skip_special_tokens=False)
SAMPLES: dict[str, list] = {
    "ApiToTokenizer": [
        EncodeText(job_id=1, text="naïve \0 👍", add_special_tokens=False),
        EncodeChat(job_id=2**63 - 1, messages=(ChatMessage("user", "hi"),)),
    ],
    "TokenizerToApi": [
        Encoded(job_id=1, token_ids=(0, 2**31 - 1)),
        EncodeFailed(job_id=2, error="refused"),
    ],
    "ApiToRouter": [
        Generate(
            request_id=3,
            prompt_ids=(1, 2, 3),
            sampling=SamplingParams(
                temperature=0.5, logit_bias={7: -100.0}, stop_token_ids=(2,), logprobs=0, seed=9
            ),
            text=OPTIONS,
            cache_salt="key",
            accepted_ns=10**15,
        ),
        Abort(request_id=3),
    ],
    "RouterToDetok": [
        TokenBatch(),
        TokenBatch(
            opened=(Opened(3, (1, 2), 2, OPTIONS, PROMPT),),
            tokens=(SampledToken(3, 1, 5, -0.5, "stop", True, TOPS),),
            ended=(Ended(3, "failed", "out of memory", 17, 10**15),),
        ),
    ],
    "DetokToApi": [
        TextBatch(
            prompts=(PromptText(3, PROMPT),),
            choices=(
                ChoiceText(3, 0, "é", 4, (5,), (-0.5,), ("é",), (False,), (TOPS,), "length", "x"),
            ),
            ended=(Ended(3, "aborted"),),
        )
    ],
    "DetokToRouter": [Stopped(request_id=3, choice=1)],
    "RankToRank": [
        RankStep(
            **{
                field.name: 7 if field.name == "step" else bytes(range(8))
                for field in msgspec.structs.fields(RankStep)
            }
        ),
    ],
}


def kinds(hop: str) -> tuple[type, ...]:
    return get_args(HOPS[hop]) or (HOPS[hop],)


@pytest.mark.parametrize("hop", HOPS)
def test_samples_cover_every_message_of_the_hop(hop):
    assert {type(sample) for sample in SAMPLES[hop]} == set(kinds(hop))


def test_hops_cover_every_message():
    tagged = {
        value
        for value in vars(messages).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct)
        if value.__struct_config__.tag and not value.__name__.startswith("_")
    }
    # parts of other messages, never sent alone
    assert tagged - {kind for hop in HOPS for kind in kinds(hop)} == {SamplingParams, TextOptions}


@pytest.mark.parametrize(("hop", "message"), [(hop, m) for hop in HOPS for m in SAMPLES[hop]])
def test_round_trip(hop, message):
    codec = Codec(HOPS[hop])
    again = codec.decode(codec.encode(message))
    assert type(again) is type(message)
    assert again == message
    hash_or_error = {type(value) for value in msgspec.structs.astuple(again)}
    assert list not in hash_or_error, "messages hold no mutable lists"


@pytest.mark.parametrize("hop", HOPS)
def test_messages_of_other_hops_are_refused(hop):
    codec = Codec(HOPS[hop])
    for other in HOPS:
        for message in SAMPLES[other] if other != hop else ():
            with pytest.raises(msgspec.ValidationError):
                codec.decode(Codec(HOPS[other]).encode(message))


def test_messages_are_frozen():
    for samples in SAMPLES.values():
        for sample in samples:
            for field in msgspec.structs.fields(sample)[:1]:
                with pytest.raises(AttributeError):
                    setattr(sample, field.name, None)


def test_unknown_fields_and_bounds_are_refused():
    codec = Codec(HOPS["ApiToRouter"])
    raw = msgspec.msgpack.decode(codec.encode(SAMPLES["ApiToRouter"][0]))
    for change in (
        {"surprise": 1},
        {"prompt_ids": [-1]},
        {"prompt_ids": [2**31]},
        {"request_id": -1},
        {"request_id": "3"},
        {"sampling": {"type": "SamplingParams", "n": 0}},
        {"sampling": {"type": "Abort", "request_id": 1}},
        {"type": "generate"},
    ):
        with pytest.raises(msgspec.ValidationError):
            codec.decode(msgspec.msgpack.encode(raw | change))


def hostile_frames(codec: Codec, sample: object) -> typing.Iterator[bytes]:
    good = codec.encode(sample)
    yield b""
    yield good[:-1]
    yield good + b"\0"
    yield pickle.dumps({"type": "Abort", "request_id": 1})
    yield from (byte * 100_000 for byte in (b"\x91", b"\x81", b"\xdc", b"\xff"))
    # headers that promise 4 GiB: array, map, text, bytes, extension
    for header in (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"):
        yield header + b"\xff" * 4
        yield b"\x81\xa4type" + header + b"\xff" * 4
        yield good[:8] + header + b"\xff" * 4 + good[8:]
    rng = random.Random(0)
    for _ in range(500):
        yield rng.randbytes(rng.randrange(1, 200))
        mutated = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        yield bytes(mutated)


@pytest.mark.parametrize("hop", HOPS)
def test_hostile_bytes_raise_value_errors_or_are_well_formed(hop):
    codec = Codec(HOPS[hop])
    num_refused = 0
    for sample in SAMPLES[hop]:
        for frame in hostile_frames(codec, sample):
            try:
                message = codec.decode(frame)
            except ValueError:
                # MsgspecError, or UnicodeDecodeError, which it lets through
                num_refused += 1
            else:
                assert isinstance(message, kinds(hop))
                assert codec.decode(codec.encode(message)) == message
    assert num_refused > 500
