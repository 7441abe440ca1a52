"""`messages[].name` goes from the request to the chat template."""

from __future__ import annotations

import asyncio

from api_app import ApiApp
from lightllm_server.messages import ChatMessage, EncodeChat


def test_the_name_goes_to_the_tokenizer(tmp_path, monkeypatch):
    jobs: list[EncodeChat] = []

    async def scenario():
        async with ApiApp(tmp_path) as app:
            tokenize = app.tokenize
            monkeypatch.setattr(app, "tokenize", lambda job: (jobs.append(job), tokenize(job)))
            messages = [
                {"role": "user", "content": "x", "name": "bob"},
                {"role": "assistant", "content": "y"},
            ]
            return await app.client.post("/v1/chat/completions", json={"messages": messages})

    assert asyncio.run(scenario()).status_code == 200
    (job,) = jobs
    assert job.messages == (ChatMessage("user", "x", "bob"), ChatMessage("assistant", "y"))
