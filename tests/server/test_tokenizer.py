"""Loading, encoding and converting tokenizers."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest

from lightllm_server.errors import ModelError
from lightllm_server.tokenizer import load_tokenizer, prepare_tokenizer
from small_tokenizers import BOS, byte_level


@pytest.fixture
def model_dir(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def save_gpt2_layout(folder):
    """`vocab.json` and `merges.txt`, the layout before `tokenizer.json`."""
    model = json.loads(byte_level().to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def test_encode_and_decode(model_dir):
    byte_level().save(str(model_dir / "tokenizer.json"))
    tokenizer = load_tokenizer(model_dir)
    ids = tokenizer.encode("the dog 👍")
    assert tokenizer.backend.id_to_token(ids[0]) == BOS
    assert tokenizer.encode("the dog 👍", add_special_tokens=False) == ids[1:]
    assert tokenizer.decode(ids) == "the dog 👍"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>the dog 👍"
    assert tokenizer.decode([10**6]) == ""
    # a completion user may send a whole template
    eos = tokenizer.backend.token_to_id("</s>")
    assert tokenizer.encode("the</s>", add_special_tokens=False)[-1] == eos


def test_truncation_and_padding_for_training_are_switched_off(model_dir):
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(model_dir / "tokenizer.json"))
    text = "the quick brown fox jumps over the lazy dog"
    assert load_tokenizer(model_dir).encode(text) == byte_level().encode(text).ids


def test_tokens_that_only_the_config_names_become_special(model_dir):
    byte_level().save(str(model_dir / "tokenizer.json"))
    config = {"pad_token": "the", "eos_token": "</s>", "cls_token": "[not in the vocabulary]"}
    (model_dir / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(model_dir)
    assert tokenizer.decode(tokenizer.encode("the dog")) == " dog"
    assert tokenizer.backend.get_vocab_size() == byte_level().get_vocab_size()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "\0" * 99])
def test_an_unusable_file_is_named(model_dir, content):
    (model_dir / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json: is no usable tokenizer: .+"):
        load_tokenizer(model_dir)


def test_a_missing_tokenizer_names_what_was_looked_for(model_dir, run_dir):
    for attempt in (load_tokenizer, prepare_tokenizer):
        with pytest.raises(ModelError, match=r"tokenizer\.json, tokenizer\.model.*vocab\.json"):
            attempt(model_dir, run_dir)


def test_a_converted_one_is_found_in_the_run_directory(model_dir, run_dir):
    byte_level().save(str(run_dir / "tokenizer.json"))
    prepare_tokenizer(model_dir, run_dir)
    assert load_tokenizer(model_dir, run_dir).path == run_dir / "tokenizer.json"


def test_a_package_that_the_conversion_lacks_is_named(model_dir, run_dir, monkeypatch):
    (model_dir / "tokenizer.model").write_bytes(b"\x0a\x02ab")
    monkeypatch.setattr("lightllm_server.tokenizer.find_spec", lambda package: None)
    with pytest.raises(ModelError, match=r"tokenizer\.model: needs the package sentencepiece"):
        prepare_tokenizer(model_dir, run_dir)


@pytest.mark.slow
def test_older_files_are_converted_once(model_dir, run_dir):
    save_gpt2_layout(model_dir)
    prepare_tokenizer(model_dir, run_dir)
    tokenizer = load_tokenizer(model_dir, run_dir)
    assert tokenizer.path == run_dir / "tokenizer.json"
    text = "über the dog 👍"
    expected = byte_level().encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, add_special_tokens=False) == expected
    assert list(model_dir.glob("tokenizer.json")) == []


def protobuf(*fields: tuple[int, int | float | bytes]) -> bytes:
    """A message of the wire format: varints below 128, floats, and lengths below 16384."""
    data = b""
    for number, value in fields:
        if isinstance(value, bytes):
            size = len(value)
            data += bytes([number << 3 | 2, size & 127 | 128, size >> 7]) + value
        elif isinstance(value, float):
            data += bytes([number << 3 | 5]) + struct.pack("<f", value)
        else:
            data += bytes([number << 3, value])
    return data


def sentencepiece_model() -> bytes:
    """A BPE model with byte fallback, as `sentencepiece_model.proto` lays it out."""
    unknown, control, byte, normal = 2, 3, 6, 1
    pieces = [("<unk>", unknown), ("<s>", control), ("</s>", control)]
    pieces += [(f"<0x{value:02X}>", byte) for value in range(256)]
    merged = ["he", "▁t", "▁the", "do", "dog", "▁dog"]
    pieces += [(piece, normal) for piece in [*merged, *"▁thedog"] if (piece, normal) not in pieces]
    names = dict(pieces)
    model = b"".join(
        protobuf((1, protobuf((1, text.encode()), (2, -float(rank)), (3, names[text]))))
        for rank, text in enumerate(names)
    )
    return model + protobuf((2, protobuf((3, 2))))


@pytest.mark.slow
def test_a_sentencepiece_model_is_converted(model_dir, run_dir):
    pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    (model_dir / "tokenizer.model").write_bytes(sentencepiece_model())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (model_dir / "tokenizer_config.json").write_text(json.dumps(config))
    (model_dir / "config.json").write_text(json.dumps({"model_type": "llama"}))
    prepare_tokenizer(model_dir, run_dir)
    tokenizer = load_tokenizer(model_dir, run_dir)
    ids = tokenizer.encode("the dog é", add_special_tokens=False)
    tokens = [tokenizer.backend.id_to_token(token_id) for token_id in ids]
    assert tokens == ["▁the", "▁dog", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "the dog é"


@pytest.mark.slow
def test_a_failed_conversion_says_why(model_dir, run_dir):
    save_gpt2_layout(model_dir)
    (model_dir / "vocab.json").write_text("{")
    with pytest.raises(ModelError, match=r"vocab\.json: cannot be converted .*: \w+"):
        prepare_tokenizer(model_dir, run_dir)


def test_neither_torch_nor_transformers_is_imported():
    code = (
        "import sys, lightllm_server.tokenize_worker, lightllm_server.detok.process\n"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
