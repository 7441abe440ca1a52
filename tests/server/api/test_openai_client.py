"""The official `openai` client against the real processes: answers and its exception classes."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def openai():
    # seconds, which `make check` would pay only to leave these tests out
    import openai

    return openai


@pytest.fixture(scope="module")
def client(server, openai):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30
    ) as client:
        yield client


@pytest.fixture(scope="module")
def echo(fake, openai):
    with openai.OpenAI(
        base_url=f"{fake.url}/v1", api_key="none", max_retries=0, timeout=30
    ) as client:
        yield client


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}]


def test_chat(client):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=20, temperature=0
    )
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 1 <= usage.completion_tokens <= 20


def test_chat_stream_equals_the_whole_answer(client):
    request = {
        "model": "tiny",
        "messages": MESSAGES,
        "max_completion_tokens": 60,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.chat.completions.create(**request)
    chunks = list(
        client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    *deltas, usage = chunks
    text = "".join(chunk.choices[0].delta.content or "" for chunk in deltas)
    assert text == whole.choices[0].message.content
    assert deltas[-1].choices[0].finish_reason == "length"
    assert [c.choices[0].finish_reason for c in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert usage.choices == []
    assert usage.usage.completion_tokens == 60 == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in deltas)
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_without_max_tokens_uses_the_rest_of_the_context(client):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage.total_tokens == 512
    assert answer.choices[0].finish_reason == "length"


def test_chat_content_parts_are_joined(echo):
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "cd"}]
    answer = echo.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": parts}], max_tokens=5
    )
    # the first token is the role's special token, which has no text
    assert answer.choices[0].message.content == "abcd"


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=3, seed=1
    )
    choice = answer.choices[0]
    assert len(choice.logprobs.content) == answer.usage.completion_tokens
    for entry in choice.logprobs.content:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
    # a token's bytes may be a part of a character, which its text does not show
    own = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
    assert own.decode(errors="replace") == choice.message.content
    tokens = "".join(entry.token for entry in choice.logprobs.content)
    assert tokens == choice.message.content


def test_completion_forms_of_prompt(client):
    def text(prompt):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=0)
        assert answer.object == "text_completion"
        return [choice.text for choice in answer.choices]

    one = text("ab")
    two = text("cd")
    assert text(["ab", "cd"]) == one + two
    ids = [64 + 1 - 1, 65]
    assert text(ids) == text([ids]) == text([ids, ids])[:1]


def test_completion_default_is_16_tokens(client):
    answer = client.completions.create(model="tiny", prompt="x", extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


def test_completion_samples_are_numbered(echo):
    answer = echo.completions.create(
        model="fake", prompt=["ab", "cd"], n=2, best_of=2, max_tokens=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["aba", "aba", "cdc", "cdc"]
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == 4


def test_completion_stream_of_several_prompts(echo):
    texts = {}
    for chunk in echo.completions.create(
        model="fake", prompt=["ab", "cd"], n=2, max_tokens=5, stream=True
    ):
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {0: "ababa", 1: "ababa", 2: "cdcdc", 3: "cdcdc"}


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs(client, stream):
    request = {
        "model": "tiny",
        "prompt": "hello",
        "max_tokens": 4,
        "echo": True,
        "logprobs": 2,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }
    if stream:
        chunks = [c.choices[0] for c in client.completions.create(**request, stream=True)]
        text = "".join(chunk.text for chunk in chunks)
        columns = {
            name: [value for c in chunks for value in getattr(c.logprobs, name)]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
    else:
        choice = client.completions.create(**request).choices[0]
        text, columns = choice.text, choice.logprobs.model_dump()
    assert text.startswith("hello")
    assert "".join(columns["tokens"]) == text
    assert columns["token_logprobs"][0] is None
    assert all(value <= 0 for value in columns["token_logprobs"][1:])
    assert len(columns["tokens"]) == len(columns["token_logprobs"]) == 9
    assert len(columns["top_logprobs"]) == len(columns["text_offset"]) == 9
    offset = 0
    for token, start in zip(columns["tokens"], columns["text_offset"], strict=True):
        assert start == offset
        offset += len(token)


def test_scoring_a_prompt_only(client):
    answer = client.completions.create(
        model="tiny", prompt="hello", max_tokens=0, echo=True, logprobs=1
    )
    assert answer.choices[0].text == "hello"
    assert len(answer.choices[0].logprobs.tokens) == 5
    assert answer.usage.completion_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(echo, stream):
    request = {"model": "fake", "prompt": "abcdef", "max_tokens": 100, "stop": ["xyz", "fab"]}
    if stream:
        chunks = [c.choices[0] for c in echo.completions.create(**request, stream=True)]
        text, reason = "".join(c.text for c in chunks), chunks[-1].finish_reason
    else:
        choice = echo.completions.create(**request).choices[0]
        text, reason = choice.text, choice.finish_reason
    assert (text, reason) == ("abcde", "stop")


def test_stop_string_across_utf8(echo):
    answer = echo.completions.create(model="fake", prompt="ab🙂é", max_tokens=100, stop="🙂")
    assert answer.choices[0].text == "ab"


def test_include_stop(echo):
    answer = echo.completions.create(
        model="fake",
        prompt="abc",
        max_tokens=100,
        stop="b",
        extra_body={"include_stop_str_in_output": True},
    )
    assert answer.choices[0].text == "ab"


def test_seed_reproduces(client):
    request = {"model": "tiny", "prompt": "x", "max_tokens": 30, "temperature": 1.5}
    texts = [client.completions.create(**request, seed=s).choices[0].text for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_samples_differ(client):
    answer = client.completions.create(
        model="tiny", prompt="x", max_tokens=30, n=4, temperature=1.5, seed=3
    )
    assert len({choice.text for choice in answer.choices}) == 4


def test_logit_bias_bans_and_forces(client):
    answer = client.completions.create(
        model="tiny", prompt="x", max_tokens=5, temperature=0, logit_bias={"65": 100}
    )
    assert len(set(answer.choices[0].text)) == 1


def test_models(client, openai):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "lightllm"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("other/name")
    assert error.value.code == "model_not_found"


def test_neutral_fields_are_ignored(client):
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x", "name": "bob"}],
        max_tokens=1,
        user="u",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        parallel_tool_calls=True,
    )
    assert answer.usage.completion_tokens == 1


def test_errors_are_the_clients_exception_classes(client, openai):
    def chat(**changes):
        request = {"model": "tiny", "messages": MESSAGES, "max_tokens": 5}
        return client.chat.completions.create(**{**request, **changes})

    with pytest.raises(openai.NotFoundError) as missing:
        chat(model="gpt-4")
    assert missing.value.code == "model_not_found"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for changes in (
        {"tools": [tool]},
        {"functions": [tool["function"]]},
        {"response_format": {"type": "json_object"}},
        {"temperature": 3},
        {"n": 99},
        {"stop": [""]},
        {"logit_bias": {"99999": 1}},
        {"max_tokens": 10**6},
        {"max_tokens": 0},
        {"extra_body": {"frobnicate": 1}},
        {"top_logprobs": 2},
    ):
        with pytest.raises(openai.BadRequestError) as error:
            chat(**changes)
        field = next(iter(changes.get("extra_body", changes)))
        assert error.value.param.startswith(field), (changes, error.value)
        assert field in error.value.message


def test_an_error_in_a_stream_is_raised(echo, openai):
    texts = []
    with pytest.raises(openai.APIError, match="on purpose"):  # noqa: PT012
        for chunk in echo.completions.create(
            model="fake", prompt="FAIL", max_tokens=9, stream=True
        ):
            texts.append(chunk.choices[0].text)
    assert "".join(texts) == "FA"
