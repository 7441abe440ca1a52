"""Pieces of text against `Tokenizer.decode` of everything."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightllm_server.detok.decoder import Decoder, TokenTexts
from small_tokenizers import byte_level, metaspace, sentencepiece, wordpiece

BYTE_LEVEL = TokenTexts(byte_level())
SENTENCEPIECE = TokenTexts(sentencepiece())
METASPACE = TokenTexts(metaspace())
LAYOUTS = {"byte-level": BYTE_LEVEL, "sentencepiece": SENTENCEPIECE, "metaspace": METASPACE}

texts = st.text(max_size=30) | st.text("ab é—日👍🏽\u0301\u200d👩 ", max_size=30)
skips = st.booleans()
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def decode(layout: TokenTexts, prompt: list[int], ids: list[int], skip: bool) -> tuple[str, list]:
    """The prompt's complete text, and the pieces of the output."""
    reading = Decoder(layout, skip_special_tokens=skip)
    before = "".join([reading.add(token_id) for token_id in prompt])
    decoder = Decoder(layout, prompt, skip_special_tokens=skip)
    return before, [*(decoder.add(token_id) for token_id in ids), decoder.flush()]


def check(layout: TokenTexts, prompt: list[int], ids: list[int], skip: bool) -> list[str]:
    before, pieces = decode(layout, prompt, ids, skip)
    whole = layout.tokenizer.decode(prompt + ids, skip_special_tokens=skip)
    assert before + "".join(pieces) == whole
    return pieces


def ids_of(layout: TokenTexts) -> st.SearchStrategy[list[int]]:
    # one beyond the vocabulary: models pad theirs
    last = layout.tokenizer.get_vocab_size(with_added_tokens=True)
    return st.lists(st.integers(0, last), max_size=25)


@given(prompt=ids_of(BYTE_LEVEL), ids=ids_of(BYTE_LEVEL), skip=skips)
def test_any_byte_level_tokens(prompt, ids, skip):
    check(BYTE_LEVEL, prompt, ids, skip)


@given(prompt=ids_of(METASPACE), ids=ids_of(METASPACE), skip=skips)
def test_any_metaspace_tokens(prompt, ids, skip):
    check(METASPACE, prompt, ids, skip)


def byte_tokens(text: str) -> list[int]:
    return [SENTENCEPIECE.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]


sentencepiece_tokens = st.lists(
    st.integers(0, 4).map(lambda i: [i])
    | st.integers(261, SENTENCEPIECE.tokenizer.get_vocab_size()).map(lambda i: [i])
    | texts.map(byte_tokens),
    max_size=12,
).map(lambda parts: [token_id for part in parts for token_id in part])


@given(prompt=sentencepiece_tokens, ids=sentencepiece_tokens, skip=skips)
def test_any_sentencepiece_tokens_whose_bytes_are_characters(prompt, ids, skip):
    check(SENTENCEPIECE, prompt, ids, skip)


@given(data=st.lists(st.integers(0x80, 0xBF) | st.integers(0xF8, 0xFF), max_size=8))
def test_wrong_fallback_bytes_are_one_replacement_each(data):
    ids = [SENTENCEPIECE.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in data]
    assert "".join(check(SENTENCEPIECE, [], ids, True)) == "\ufffd" * len(data)


def test_complete_characters_stay_when_a_wrong_byte_follows():
    ids = [*byte_tokens("€"), SENTENCEPIECE.tokenizer.token_to_id("<0xFF>")]
    _, pieces = decode(SENTENCEPIECE, [], ids, True)
    assert pieces == ["", "", "€", "\ufffd", ""]


@each_layout
@given(prompt=texts, text=texts)
def test_texts_stream_without_a_replacement_character(layout, prompt, text):
    tokenizer = LAYOUTS[layout].tokenizer
    prompt_ids = tokenizer.encode(prompt).ids
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = check(LAYOUTS[layout], prompt_ids, ids, True)
    assert "\ufffd" not in "".join(pieces).replace("\ufffd" * text.count("\ufffd"), "")


@pytest.mark.parametrize("text", ["👍🏽", "日本語", "e\u0301", "👩‍👩‍👧"])
@pytest.mark.parametrize("layout", ["byte-level", "sentencepiece"])
def test_a_character_appears_with_the_token_that_completes_it(layout, text):
    tokenizer = LAYOUTS[layout].tokenizer
    ids = tokenizer.encode("x" + text, add_special_tokens=False).ids
    decoder = Decoder(LAYOUTS[layout], [tokenizer.token_to_id("<s>")])
    seen, data = "", b""
    for token_id in ids:
        seen += decoder.add(token_id)
        data += LAYOUTS[layout].piece(token_id)
        assert seen.lstrip() == data.decode(errors="ignore").lstrip()
    assert seen.endswith(text)
    assert decoder.flush() == ""


def test_the_first_space_stays_behind_a_prompt_and_goes_at_the_start():
    tokenizer = SENTENCEPIECE.tokenizer
    ids = tokenizer.encode("the dog", add_special_tokens=False).ids
    bos = tokenizer.token_to_id("<s>")

    def text(prompt, skip=True):
        return "".join(decode(SENTENCEPIECE, prompt, ids, skip)[1])

    assert text([]) == "the dog"
    assert text([bos]) == "the dog"
    assert text([bos], skip=False) == " the dog"
    assert text(tokenizer.encode("over").ids) == " the dog"


def test_a_character_that_the_prompt_begins_is_completed():
    whole = BYTE_LEVEL.tokenizer.encode("€", add_special_tokens=False).ids
    assert len(whole) > 1
    decoder = Decoder(BYTE_LEVEL, whole[:1])
    assert "".join([*(decoder.add(i) for i in whole[1:]), decoder.flush()]) == "€"


@given(ids=st.lists(st.integers(0, 9), max_size=20), cut=st.integers(0, 20))
def test_other_decoders_stream_through_a_window(ids, cut):
    tokenizer = wordpiece()
    layout = TokenTexts(tokenizer)
    assert layout.rules is None
    prompt = ids[:cut]
    decoder = Decoder(layout, prompt)
    pieces = [*(decoder.add(token_id) for token_id in ids[cut:]), decoder.flush()]
    assert tokenizer.decode(prompt) + "".join(pieces) == tokenizer.decode(ids)


def test_special_tokens_of_old_conversions_are_skipped_too():
    texts = TokenTexts(sentencepiece(normalized=True))
    eos = texts.tokenizer.token_to_id("</s>")
    assert Decoder(texts).add(eos) == ""
    assert Decoder(texts, skip_special_tokens=False).add(eos) == "</s>"


@each_layout
def test_the_text_of_one_token(layout):
    texts, tokenizer = LAYOUTS[layout], LAYOUTS[layout].tokenizer
    assert texts.text(tokenizer.token_to_id("</s>")) == "</s>"
    assert texts.text(10_000) == ""
    [*_, last] = tokenizer.encode("over the", add_special_tokens=False).ids
    assert texts.text(last) == " the"


def test_half_characters_alone_are_replacements():
    [first, *_] = BYTE_LEVEL.tokenizer.encode("€", add_special_tokens=False).ids
    assert BYTE_LEVEL.text(first) == "\ufffd"


@each_layout
def test_time_per_token_does_not_grow(layout):
    texts = LAYOUTS[layout]
    ids = [*range(300)] * 70
    decoder = Decoder(texts)
    start = time.process_time()
    for token_id in ids:
        decoder.add(token_id)
    # ~1 µs each; decoding everything again for each token would take minutes
    assert time.process_time() - start < 1
