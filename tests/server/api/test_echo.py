"""`echo` repeats the prompt in front of the completion, also one of token ids."""

from __future__ import annotations

import asyncio
import threading

import pytest

from api_app import ApiApp

# "a", "<|user|>", "b" in the tiny tokenizer
IDS = [64, 259, 65]


@pytest.mark.parametrize(("skip", "text"), [(None, "ab"), (True, "ab"), (False, "a<|user|>b")])
def test_token_ids_are_echoed_with_or_without_special_tokens(tmp_path, skip, text):
    async def scenario():
        async with ApiApp(tmp_path) as app:
            body = {"prompt": [IDS, [65]], "echo": True, "skip_special_tokens": skip}
            return await app.client.post("/v1/completions", json=body)

    choices = asyncio.run(scenario()).json()["choices"]
    assert [choice["text"] for choice in choices] == [text + "a", "ba"]


def test_texts_are_echoed_as_they_were_given(tmp_path):
    async def scenario():
        async with ApiApp(tmp_path) as app:
            body = {"prompt": ["a<|user|>", "b"], "echo": True}
            return await app.client.post("/v1/completions", json=body)

    choices = asyncio.run(scenario()).json()["choices"]
    assert [choice["text"] for choice in choices] == ["a<|user|>a", "ba"]


def test_the_event_loop_decodes_no_prompt(tmp_path):
    """A prompt of a hundred thousand ids would stop every other answer for its time."""

    class Backend:
        def __init__(self, backend) -> None:
            self.backend = backend
            self.threads: list[threading.Thread] = []

        def decode_batch(self, *args, **options):
            self.threads.append(threading.current_thread())
            # nothing has been sent to the engine that a client could leave behind
            assert app.received == []
            return self.backend.decode_batch(*args, **options)

    async def scenario():
        nonlocal app
        async with app:
            backend = Backend(app.tokenizer.backend)
            object.__setattr__(app.tokenizer, "backend", backend)
            answer = await app.client.post("/v1/completions", json={"prompt": IDS, "echo": True})
            return answer, backend.threads

    app = ApiApp(tmp_path)
    answer, threads = asyncio.run(scenario())
    assert answer.status_code == 200
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
