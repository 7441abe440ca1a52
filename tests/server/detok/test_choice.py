"""Pieces of one choice: concatenated they are the naive cut of the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm_server.detok.choice import ChoiceStream
from lightllm_server.detok.decoder import TokenTexts
from lightllm_server.messages import ChoiceText, Opened, SampledToken, TextOptions, TopLogprob
from small_tokenizers import byte_level, sentencepiece

BYTE_LEVEL = TokenTexts(byte_level())
SENTENCEPIECE = TokenTexts(sentencepiece())
CHARACTERS = "ab—👍 "


def sample(
    layout: TokenTexts,
    ids: list[int],
    options: TextOptions,
    *,
    finish: str | None = "length",
    stop_token: bool = False,
) -> tuple[list[ChoiceText], int]:
    """The pieces, and the number of tokens read."""
    bos = layout.tokenizer.token_to_id("<s>")
    stream = ChoiceStream(layout, Opened(7, (bos,), 1, options))
    pieces = []
    for index, token_id in enumerate(ids):
        last = index == len(ids) - 1
        token = SampledToken(
            7, 0, token_id, -float(index), finish if last else None, last and stop_token
        )
        piece = stream.add(token)
        if piece is not None:
            pieces.append(piece)
        if stream.finished:
            assert stream.cut_short == (not last or finish is None)
            return pieces, index + 1
    return pieces, len(ids)


def naive_cut(text: str, stops: tuple[str, ...], include_stop: bool) -> tuple[str, str | None, int]:
    """The text kept, the stop string, and how much text had to be read to know."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include_stop else end - len(stop)], stop, end
    return text, None, len(text)


@settings(max_examples=200)
@given(
    text=st.text(CHARACTERS, min_size=1, max_size=40),
    stops=st.lists(st.text(CHARACTERS, max_size=4), max_size=3).map(tuple),
    include_stop=st.booleans(),
    every_token=st.booleans(),
    layout=st.sampled_from([BYTE_LEVEL, SENTENCEPIECE]),
)
def test_pieces_are_the_naive_cut(text, stops, include_stop, every_token, layout):
    ids = layout.tokenizer.encode(text, add_special_tokens=False).ids
    text = layout.tokenizer.decode(ids)
    options = TextOptions(stop=stops, include_stop=include_stop, every_token=every_token)
    pieces, num_read = sample(layout, ids, options)

    kept, stop, num_needed = naive_cut(text, stops, include_stop)
    assert "".join(piece.text for piece in pieces) == kept
    last = pieces[-1]
    assert (last.finish_reason, last.matched_stop) == ("stop" if stop else "length", stop)
    assert all(piece.finish_reason is None for piece in pieces[:-1])
    # the match is seen with the token that completes it: one less is not enough text
    assert last.num_tokens == num_read
    assert len(layout.tokenizer.decode(ids[:num_read])) >= num_needed
    if stop:
        before = layout.tokenizer.decode(ids[: num_read - 1])
        assert stop not in before.replace("\ufffd", "")
    reported = [token_id for piece in pieces for token_id in piece.token_ids]
    assert reported == ids[:num_read]
    assert [x for piece in pieces for x in piece.logprobs] == [-float(i) for i in range(num_read)]
    token_texts = [text for piece in pieces for text in piece.token_texts]
    if every_token:
        assert "".join(token_texts) == kept
        assert all(piece.text == "".join(piece.token_texts) for piece in pieces)
    else:
        assert token_texts == []


def test_every_token_is_told_at_once_unless_held_back():
    ids = BYTE_LEVEL.tokenizer.encode("👍", add_special_tokens=False).ids
    assert len(ids) > 1
    pieces, _ = sample(BYTE_LEVEL, ids, TextOptions(every_token=True))
    assert [piece.token_texts for piece in pieces] == [("",)] * (len(ids) - 1) + [("👍",)]
    pieces, _ = sample(BYTE_LEVEL, ids, TextOptions())
    assert [(piece.text, piece.num_tokens) for piece in pieces] == [("👍", len(ids))]


def test_text_that_may_become_a_stop_string_is_held_and_given_back():
    encode = BYTE_LEVEL.tokenizer.encode
    ids = [encode(char, add_special_tokens=False).ids[0] for char in "xabyab"]
    pieces, _ = sample(BYTE_LEVEL, ids, TextOptions(stop=("abc",)))
    assert [piece.text for piece in pieces] == ["x", "aby", "ab"]
    pieces, _ = sample(BYTE_LEVEL, ids[:-1], TextOptions(stop=("abc",)), finish=None)
    assert [piece.text for piece in pieces] == ["x", "aby"]


def test_stop_strings_count_from_the_least_token_on():
    encode = BYTE_LEVEL.tokenizer.encode
    ids = [encode(char, add_special_tokens=False).ids[0] for char in "abcabcx"]
    for least, kept in ((0, "a"), (2, "a"), (3, "abca"), (5, "abca"), (6, "abcabcx")):
        pieces, _ = sample(BYTE_LEVEL, ids, TextOptions(stop=("bc", "b"), min_new_tokens=least))
        assert "".join(piece.text for piece in pieces) == kept, least


def test_a_stop_token_counts_and_has_no_text():
    tokenizer = BYTE_LEVEL.tokenizer
    [the] = tokenizer.encode("the", add_special_tokens=False).ids
    eos = tokenizer.token_to_id("</s>")
    options = TextOptions(skip_special_tokens=False, every_token=True)
    pieces, _ = sample(BYTE_LEVEL, [the, eos], options, finish="stop", stop_token=True)
    last = pieces[-1]
    assert (last.text, last.num_tokens, last.finish_reason) == ("", 2, "stop")
    assert (last.matched_stop, last.special) == ("</s>", (True,))
    # without being the stop token it is text
    pieces, _ = sample(BYTE_LEVEL, [the, eos], options)
    assert "".join(piece.text for piece in pieces) == "the</s>"


def test_a_match_on_the_last_token_beats_length_and_needs_no_word_to_the_router():
    [the] = BYTE_LEVEL.tokenizer.encode("the", add_special_tokens=False).ids
    stream = ChoiceStream(BYTE_LEVEL, Opened(7, (0,), 1, TextOptions(stop=("he",))))
    piece = stream.add(SampledToken(7, 0, the, 0.0, "length"))
    assert (piece.text, piece.finish_reason, piece.matched_stop) == ("t", "stop", "he")
    assert stream.finished
    assert not stream.cut_short


def test_half_a_character_is_flushed_at_the_end():
    ids = BYTE_LEVEL.tokenizer.encode("€", add_special_tokens=False).ids[:1]
    pieces, _ = sample(BYTE_LEVEL, ids, TextOptions(every_token=True))
    assert [piece.token_texts for piece in pieces] == [("\ufffd",)]


@pytest.mark.parametrize("every_token", [False, True])
def test_alternatives_get_their_texts(every_token):
    tokenizer = BYTE_LEVEL.tokenizer
    [the] = tokenizer.encode("the", add_special_tokens=False).ids
    stream = ChoiceStream(BYTE_LEVEL, Opened(7, (0,), 1, TextOptions(every_token=every_token)))
    tops = (TopLogprob(the, -0.5), TopLogprob(tokenizer.token_to_id("</s>"), -1.5))
    piece = stream.add(SampledToken(7, 0, the, -0.5, None, False, tops))
    assert [top.text for top in piece.tops[0]] == ["the", "</s>"]
    assert [top.logprob for top in piece.tops[0]] == [-0.5, -1.5]


@pytest.mark.parametrize("layout", [BYTE_LEVEL, SENTENCEPIECE])
def test_bytes_are_the_tokens_own_also_where_it_is_part_of_a_character(layout):
    text = "a€b"
    ids = layout.tokenizer.encode(text, add_special_tokens=False).ids
    pieces, _ = sample(layout, ids, TextOptions(every_token=True, token_bytes=True))
    texts = [text for piece in pieces for text in piece.token_texts]
    own = [data for piece in pieces for data in piece.token_bytes]
    assert "".join(texts) == text
    assert b"".join(own).strip() == text.encode()
    # several tokens make one character: the last of them has its text
    assert b"\xe2" in own
    assert texts[own.index(b"\xe2")] == ""


def test_bytes_of_what_the_text_leaves_out_are_none():
    tokenizer = BYTE_LEVEL.tokenizer
    special, eos = tokenizer.token_to_id("<|user|>"), tokenizer.token_to_id("</s>")
    [the] = tokenizer.encode("the", add_special_tokens=False).ids
    options = TextOptions(every_token=True, token_bytes=True)
    pieces, _ = sample(BYTE_LEVEL, [special, the, eos], options, finish="stop", stop_token=True)
    assert [data for piece in pieces for data in piece.token_bytes] == [b"", b"the", b""]


def test_alternatives_get_their_bytes_where_asked_for():
    ids = BYTE_LEVEL.tokenizer.encode("€", add_special_tokens=False).ids
    for asked, wanted in ((True, b"\xe2"), (False, None)):
        options = TextOptions(every_token=True, token_bytes=asked)
        stream = ChoiceStream(BYTE_LEVEL, Opened(7, (0,), 1, options))
        token = SampledToken(7, 0, ids[0], -0.5, "length", False, (TopLogprob(ids[0], -0.5),))
        [[top]] = stream.add(token).tops
        assert (top.text, top.token_bytes) == ("\ufffd", wanted)
