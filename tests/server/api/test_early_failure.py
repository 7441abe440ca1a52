"""A stream that fails before its first token is no stream: the client gets the error's status."""

from __future__ import annotations

import asyncio
import json

import pytest

from api_app import ApiApp, failing, one_token

ROUTES = {
    "/generate_stream": {"inputs": "a"},
    "/v1/completions": {"prompt": "a", "echo": True, "stream": True},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "stream": True},
}


@pytest.mark.parametrize("path", ROUTES)
def test_a_stream_that_fails_at_once_is_an_error_answer(tmp_path, path):
    async def scenario():
        async with ApiApp(tmp_path, failing) as app:
            return await app.client.post(path, json=ROUTES[path])

    answer = asyncio.run(scenario())
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "on purpose"


def test_the_roles_of_a_chat_come_once_before_its_text(tmp_path):
    async def scenario():
        async with ApiApp(tmp_path, one_token) as app:
            body = {**ROUTES["/v1/chat/completions"], "n": 2}
            return await app.client.post("/v1/chat/completions", json=body)

    *events, done = asyncio.run(scenario()).text.strip().split("\n\n")
    assert done == "data: [DONE]"
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    assert [(choice["index"], *choice["delta"].items()) for choice in choices] == [
        (0, ("role", "assistant"), ("content", "")),
        (1, ("role", "assistant"), ("content", "")),
        (0, ("content", "a")),
        (0,),
        (1, ("content", "a")),
        (1,),
    ]
