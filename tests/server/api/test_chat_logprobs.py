"""A chat's log probabilities: `bytes` are the token's own, which its text may not show."""

from __future__ import annotations

import asyncio
import json

import pytest

from api_app import ApiApp
from lightllm_server.messages import ChoiceText, Ended, Generate, TextBatch, TopLogprob


def euro(message: Generate) -> list[TextBatch]:
    """One character of two tokens; of the second one's alternative nobody knows the bytes."""
    assert message.text.token_bytes
    request_id = message.request_id
    piece = ChoiceText(
        request_id,
        0,
        "€",
        2,
        (1, 2),
        (-0.5, -0.25),
        ("", "€"),
        (False, False),
        ((TopLogprob(1, -0.5, "\ufffd", b"\xe2"),), (TopLogprob(9, -3.0, "?"),)),
        "length",
        None,
        (b"\xe2", b"\x82\xac"),
    )
    return [TextBatch(choices=(piece,), ended=(Ended(request_id, "finished"),))]


@pytest.mark.parametrize("stream", [False, True])
def test_bytes_are_the_tokens_own(tmp_path, stream):
    async def scenario():
        async with ApiApp(tmp_path, euro) as app:
            body = {
                "messages": [{"role": "user", "content": "a"}],
                "logprobs": True,
                "top_logprobs": 1,
                "stream": stream,
            }
            return await app.client.post("/v1/chat/completions", json=body)

    answer = asyncio.run(scenario())
    if stream:
        events = [event.removeprefix("data: ") for event in answer.text.strip().split("\n\n")]
        [logprobs] = [
            choice["logprobs"]
            for event in events[:-1]
            for choice in json.loads(event)["choices"]
            if choice["logprobs"]
        ]
    else:
        logprobs = answer.json()["choices"][0]["logprobs"]
    assert [(entry["token"], entry["bytes"]) for entry in logprobs["content"]] == [
        ("", [0xE2]),
        ("€", [0x82, 0xAC]),
    ]
    tops = [top["bytes"] for entry in logprobs["content"] for top in entry["top_logprobs"]]
    assert tops == [[0xE2], None]
