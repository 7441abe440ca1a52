"""Bodies count against one budget from their first byte until they are parsed."""

from __future__ import annotations

import asyncio

from api_app import ApiApp

MAX_BODY_BYTES = 2**18


def test_bodies_that_wait_to_be_parsed_are_bounded(tmp_path):
    """Large ones are parsed one after the other; what waits for its turn is in memory."""

    async def scenario():
        async with ApiApp(tmp_path, max_body_bytes=MAX_BODY_BYTES) as app:
            body = b'{"inputs": "' + b"a" * (MAX_BODY_BYTES - 14) + b'"}'
            assert len(body) == MAX_BODY_BYTES
            # the turn is somebody else's
            await app.service._large_body.acquire()
            posts = [
                asyncio.create_task(app.client.post("/generate", content=body)) for _ in range(20)
            ]
            for _ in range(300):
                await asyncio.sleep(0.01)
                if sum(post.done() for post in posts) == 4:
                    break
            refused = [task.result() for task in posts if task.done()]
            app.service._large_body.release()
            answers = await asyncio.gather(*posts)
            # all was given back
            last = await app.client.post("/generate", content=body)
            return refused, [*answers, last]

    refused, answers = asyncio.run(scenario())
    assert [answer.status_code for answer in refused] == [429] * 4
    # parsed, and far too long for the model
    assert [answer.status_code for answer in answers].count(400) == 17
