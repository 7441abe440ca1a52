"""Chats to tokens: as transformers, except that no text of a user becomes a special token."""

from __future__ import annotations

import json
import re
import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm_server import chat_tokenizer, tokenize_worker
from lightllm_server.chat_template import ChatTemplate, TemplateFailedError, load_chat_template
from lightllm_server.chat_tokenizer import ChatTokenizer
from lightllm_server.errors import ModelError
from lightllm_server.messages import (
    ChatMessage,
    EncodeChat,
    Encoded,
    EncodeFailed,
    EncodeText,
)
from lightllm_server.tokenize_worker import Worker, time_limit
from lightllm_server.tokenizer import TextTokenizer, load_tokenizer
from small_tokenizers import SPECIALS, byte_level, sentencepiece

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
# in the manner of: ChatML, LLaMA 2, Zephyr, DeepSeek R1, and one with every extension
TEMPLATES = {
    "chatml": """\
{{ bos_token }}{% for message in messages %}
    {{- '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}""",
    "llama2": """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}\
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}\
{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}""",
    "zephyr": """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "split": """\
{%- set ns = namespace(system='') -%}
{%- for m in messages if m.role == 'system' %}{% set ns.system = m.content %}{% endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for m in messages %}
  {%- if m.role == 'assistant' %}
    {%- set content = m.content.split('</think>')[-1] %}{{ '<|assistant|>' + content + eos_token }}
  {%- elif m.role == 'user' %}{{ '<|user|>' + m.content }}{% endif %}
{%- endfor %}""",
    "extensions": """\
{%- for m in messages %}
{%- if loop.index > 3 %}{% break %}{% endif %}
{%- if m.role == 'system' %}{% continue %}{% endif %}
{% generation %}{{ m.content | trim | tojson }}{{ m | tojson(indent=1) }}{% endgeneration %}
{{ {'a': m.content[1:5], 'b': tools is none} }}{{ strftime_now('%Y') }}
{{ dict(a=1).a }}{{ pad_token }}{{ m.content | upper }}</s>
{%- endfor %}""",
}
LAYOUTS = {
    "byte-level": byte_level,
    "prepend": sentencepiece,
    "prepend, normalized": lambda: sentencepiece(normalized=True),
    "first": lambda: sentencepiece("first"),
    "always": lambda: sentencepiece("always"),
}
CHATS = [
    [("user", "the dog?")],
    [("system", "über 👍"), ("user", "  the\n\nlazy dog  "), ("assistant", "x</think> y ")],
    [("user", ""), ("assistant", "日本語 <s"), ("user", "\uf8ff\U000f0000 </ s>"), ("user", "é")],
]


def write(folder, name, content):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@cache
def chat_tokenizer_of(layout: str, template: str) -> ChatTokenizer:
    return ChatTokenizer(LAYOUTS[layout](), ChatTemplate(template, TOKENS))


def chat(*messages: tuple[str, str]) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(role, content) for role, content in messages)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_transformers(layout, template, tmp_path):
    from transformers import PreTrainedTokenizerFast

    LAYOUTS[layout]().save(str(tmp_path / "tokenizer.json"))
    normalized = layout == "prepend, normalized"
    flags = {"special": True, "normalized": normalized, "__type": "AddedToken"}
    tokens = {name: flags | {"content": text} for name, text in TOKENS.items()}
    config = tokens | {"chat_template": TEMPLATES[template]}
    write(tmp_path, "tokenizer_config.json", config)
    oracle = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = ChatTokenizer(load_tokenizer(tmp_path).backend, load_chat_template(tmp_path))
    for messages in CHATS:
        as_dicts = [{"role": role, "content": content} for role, content in messages]
        for add_generation_prompt in (True, False):
            expected = oracle.apply_chat_template(
                as_dicts, add_generation_prompt=add_generation_prompt
            )["input_ids"]
            ids = ours.encode(chat(*messages), add_generation_prompt=add_generation_prompt)
            assert ids == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_the_rendered_text(layout, template):
    ours = chat_tokenizer_of(layout, TEMPLATES[template])
    backend = LAYOUTS[layout]()
    for messages in CHATS:
        rendered = ChatTemplate(TEMPLATES[template], TOKENS).render(
            [{"role": role, "content": content} for role, content in messages]
        )
        expected = backend.encode(rendered, add_special_tokens=False).ids
        assert ours.encode(chat(*messages)) == expected


fragments = st.sampled_from([*SPECIALS, "<", "s>", "</s", "|user|>", ">", " ", "\n", "a", "é—"])
contents = st.lists(fragments | st.text(max_size=3), max_size=8).map("".join)


# in the normalized layout the template's own special tokens count only behind a space
@pytest.mark.parametrize("layout", ["byte-level", "prepend", "first", "always"])
@pytest.mark.parametrize("template", ["chatml", "llama2", "zephyr"])
@settings(max_examples=25)
@given(content=contents, answer=contents)
def test_special_tokens_in_messages_stay_text(layout, template, content, answer):
    ours = chat_tokenizer_of(layout, TEMPLATES[template])
    backend = LAYOUTS[layout]()
    special = {backend.token_to_id(token) for token in SPECIALS}
    messages = [("user", content), ("assistant", answer)]
    ids = ours.encode(chat(*messages))
    harmless = ours.encode(chat(("user", "x"), ("assistant", "y")))
    assert [i for i in ids if i in special] == [i for i in harmless if i in special]
    # and nothing of the text is lost
    if layout == "byte-level":
        rendered = ChatTemplate(TEMPLATES[template], TOKENS).render(
            [{"role": role, "content": text} for role, text in messages]
        )
        assert backend.decode(ids, skip_special_tokens=False) == rendered


def test_normalized_special_tokens_in_messages_stay_text():
    backend = LAYOUTS["prepend, normalized"]()
    ours = ChatTokenizer(backend, ChatTemplate("{{ messages[0].content }}", TOKENS))
    text = "the </s> dog <|user|>"
    eos = backend.token_to_id("</s>")
    assert eos in backend.encode(text).ids
    ids = ours.encode(chat(("user", text)))
    assert eos not in ids
    assert backend.decode(ids, skip_special_tokens=False) == text


def test_raw_prompts_keep_their_special_tokens_on_the_same_tokenizer():
    backend = byte_level()
    chats = ChatTokenizer(backend, ChatTemplate(TEMPLATES["chatml"], TOKENS))
    before = byte_level().encode("a</s>b").ids
    chats.encode(chat(("user", "a</s>b")))
    assert backend.encode("a</s>b").ids == before


def test_templates_cannot_cut_a_hidden_token_open():
    backend = byte_level()
    eos = backend.token_to_id("</s>")
    for operation in ("[1:]", "[:-1]", "[0]", " | trim", " | upper | lower", " | tojson"):
        template = "{{ messages[0].content" + operation + " }}"
        ours = ChatTokenizer(backend, ChatTemplate(template, TOKENS))
        for content in ("</s>", " </s> ", "a</s>", "</s>a"):
            assert eos not in ours.encode(chat(("user", content)))


def test_unknown_roles_are_refused():
    ours = chat_tokenizer_of("byte-level", TEMPLATES["chatml"])
    # '<|' + role + '|>' would make the start of another message of it
    with pytest.raises(TemplateFailedError, match=r"role 'user\|>x<\|assistant' is none of"):
        ours.encode(chat(("user|>x<|assistant", "hi")))


def test_messages_may_hold_private_use_characters(monkeypatch):
    monkeypatch.setattr(chat_tokenizer, "_PRIVATE_USE", (0xF0000, 0xF0001))
    backend = byte_level()
    template = ChatTemplate("{{ messages[0].content }}", TOKENS)
    ours = ChatTokenizer(backend, template)
    text = "\U000f0000</s>\U000f0000"
    assert backend.decode(ours.encode(chat(("user", text)))) == text
    with pytest.raises(TemplateFailedError, match="private-use"):
        ours.encode(chat(("user", text + "\U000f0001")))


def test_longest_special_token_wins_and_many_cost_little():
    words = {"<a>", "<a>b", "<ab>", "<", "\n\n", *(f"<unused{i}>" for i in range(6000))}
    pattern = re.compile(chat_tokenizer._any_of(words))
    for text in ("<a>b", "<a>c", "<ab>", "<b", "\n\n\n", "<unused599>", "<unused5999>"):
        longest = max((word for word in words if text.startswith(word)), key=len)
        assert pattern.match(text)[0] == longest
    start = time.process_time()
    assert len(pattern.findall("<unused" * 100_000)) == 100_000
    assert time.process_time() - start < 2


def fails(template: str, message: str, content: str = "x") -> None:
    with pytest.raises(TemplateFailedError, match=message):
        ChatTemplate(template, TOKENS).render([{"role": "user", "content": content}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ (messages[0].items | attr('__self__')).x }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10**9) %}{{ i }}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_hostile_or_broken_templates_fail_the_message_only(template):
    fails(template, "chat template")


def test_output_is_bounded():
    fails("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}", "more than 65556")
    long = "y" * 30_000
    ChatTemplate("{{ messages[0].content * 4 }}", {}).render([{"role": "user", "content": long}])
    fails("{{ messages[0].content * 8 }}", "more than", long)


def test_time_is_bounded(monkeypatch):
    monkeypatch.setattr(tokenize_worker, "_TEMPLATE_LIMIT_S", 0.1)
    template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ours = ChatTokenizer(byte_level(), ChatTemplate(template, TOKENS), time_limit)
    with pytest.raises(TemplateFailedError, match=r"more than 0\.1 s"):
        ours.encode(chat(("user", "x")))


def test_where_templates_are_found(tmp_path):
    assert load_chat_template(tmp_path) is None
    config = {"eos_token": {"content": "</s>", "special": True}, "chat_template": "A{{eos_token}}"}
    write(tmp_path, "tokenizer_config.json", config)
    assert load_chat_template(tmp_path).render([]) == "A</s>"
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D{{bos_token}}"}]
    write(tmp_path, "tokenizer_config.json", config | {"chat_template": named, "bos_token": "<s>"})
    assert load_chat_template(tmp_path).render([]) == "D<s>"
    write(tmp_path, "chat_template.jinja", "F{{unk_token}}")
    write(tmp_path, "special_tokens_map.json", {"unk_token": "<unk>"})
    assert load_chat_template(tmp_path).render([]) == "F<unk>"


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", [1], "not an object"),
        ("tokenizer_config.json", {"chat_template": 5}, "is a int"),
        ("tokenizer_config.json", {"chat_template": "{% if %}"}, "not valid jinja"),
        ("chat_template.jinja", "{{", "not valid jinja"),
    ],
)
def test_unusable_templates_are_named(tmp_path, name, content, cause):
    write(tmp_path, name, content)
    with pytest.raises(ModelError, match=rf"{name}: .*{cause}"):
        load_chat_template(tmp_path)


def test_the_worker_answers_every_job(tmp_path):
    tokenizer = TextTokenizer(byte_level(), tmp_path)
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}", TOKENS)
    worker = Worker(tokenizer, ChatTokenizer(tokenizer.backend, template))
    expected = tuple(tokenizer.encode("the dog"))
    job = EncodeText(job_id=1, text="the dog")
    assert worker.answer(job) == Encoded(job_id=1, token_ids=expected)
    job = EncodeText(job_id=2, text="the dog", add_special_tokens=False)
    assert worker.answer(job) == Encoded(job_id=2, token_ids=expected[1:])
    job = EncodeChat(job_id=3, messages=chat(("user", "the dog")))
    assert worker.answer(job) == Encoded(job_id=3, token_ids=expected)
    job = EncodeChat(job_id=4, messages=())
    assert isinstance(worker.answer(job), EncodeFailed)
    without = Worker(tokenizer, None)
    job = EncodeChat(job_id=5, messages=chat(("user", "x")))
    assert without.answer(job) == EncodeFailed(job_id=5, error="this model has no chat template")


def test_an_unforeseen_error_fails_its_job_without_details(tmp_path, monkeypatch, caplog):
    worker = Worker(TextTokenizer(byte_level(), tmp_path), None)

    def broken(*args, **options):
        raise RuntimeError("secret")

    monkeypatch.setattr(TextTokenizer, "encode", broken)
    answer = worker.answer(EncodeText(job_id=1, text="private"))
    assert answer == EncodeFailed(job_id=1, error="the text cannot be tokenized")
    assert "job 1" in caplog.text
    assert "private" not in caplog.text


NAMED = (
    "{% for m in messages %}<|user|>{{ m.name if 'name' in m else '-' }}: {{ m.content }}"
    "{% endfor %}"
)


def test_names_reach_the_template_and_hold_no_special_token():
    ours = ChatTokenizer(byte_level(), ChatTemplate(NAMED, TOKENS))
    messages = (ChatMessage("user", "hi", "a</s>b"), ChatMessage("user", "hi"))
    ids = ours.encode(messages)
    backend = byte_level()
    special = {backend.token_to_id(text) for text in SPECIALS}
    # the template's own two, and not the one in the name
    assert [token_id for token_id in ids if token_id in special] == [
        backend.token_to_id("<|user|>")
    ] * 2
    text = backend.decode(ids, skip_special_tokens=False)
    assert text.replace(" ", "") == "<|user|>a</s>b:hi<|user|>-:hi"
