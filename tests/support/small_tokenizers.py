"""Tokenizers of the layouts that models use, small enough to be trained in a test."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

BOS, EOS = "<s>", "</s>"
SPECIALS = (BOS, EOS, "<|user|>", "<|assistant|>")
TEXTS = (
    "the quick brown fox jumps over the lazy dog, and the dog sleeps on",
    "a stop string, a token, a prompt: the tokens of the prompt are the text of it",
    "über größere Flüsse; naïve café — déjà vu",
    "日本語の文字 日本語 漢字 👍🏽 👩‍👩‍👧 é",
) * 4


@cache
def _byte_level_json() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(["<tool call>", "é—"])
    _add_bos(tokenizer)
    return tokenizer.to_str()


@cache
def _sentencepiece_json(scheme: str, normalized: bool) -> str:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        [text for text in TEXTS if text.isascii()],
        trainers.BpeTrainer(vocab_size=200, show_progress=False),
    )
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", *SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if scheme == "prepend":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=normalized) for text in SPECIALS])
    _add_bos(tokenizer)
    return tokenizer.to_str()


def _add_bos(tokenizer: Tokenizer) -> None:
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )


def byte_level() -> Tokenizer:
    """GPT-2's and LLaMA 3's layout: any byte has a token."""
    return Tokenizer.from_str(_byte_level_json())


def sentencepiece(scheme: str = "prepend", *, normalized: bool = False) -> Tokenizer:
    """LLaMA 2's layout with byte fallback.

    `scheme`: how spaces are marked: prepend (by the normalizer), first, always. `normalized`:
    special tokens are looked for in the normalized text, as in the first conversions.
    """
    return Tokenizer.from_str(_sentencepiece_json(scheme, normalized))


def metaspace() -> Tokenizer:
    """T5's layout: no bytes, spaces by the Metaspace decoder."""
    tokenizer = sentencepiece("always")
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wordpiece() -> Tokenizer:
    """BERT's layout, whose decoder looks at the tokens around."""
    words = ["[UNK]", "to", "##ken", "##s", "stream", "##ing", ".", "do", "n't", ","]
    tokenizer = Tokenizer(
        models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
