"""The kept demo model: its files, and that it answers its own text."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "demo-model"
MAX_BYTES = 6_000_000
MIN_EXACT = 0.9


def load_script(name: str):
    """A module of scripts/demo_model, which is no package."""
    path = ROOT / "scripts" / "demo_model" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"demo_model_{name}", path)
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


corpus = load_script("corpus")


def read_json(name: str) -> dict:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def raise_exception(message: str) -> None:
    raise ValueError(message)


def render(messages: list[dict[str, str]]) -> str:
    config = read_json("tokenizer_config.json")
    template = jinja2.Environment().from_string(config["chat_template"])
    return template.render(
        messages=messages,
        bos_token=config["bos_token"],
        eos_token=config["eos_token"],
        add_generation_prompt=True,
        raise_exception=raise_exception,
    )


def test_the_files_are_there_and_small():
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES


def test_the_config_allows_one_two_and_four_ranks():
    config = read_json("config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (12, 4)
    assert config["hidden_size"] == 12 * config["head_dim"]
    assert config["intermediate_size"] % 4 == 0
    assert config["max_position_embeddings"] >= 2048


def test_the_special_tokens_agree_everywhere():
    config, generation = read_json("config.json"), read_json("generation_config.json")
    names = read_json("tokenizer_config.json")
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    for kind in ("bos", "eos", "pad"):
        token_id = tokenizer.token_to_id(names[f"{kind}_token"])
        assert config[f"{kind}_token_id"] == generation[f"{kind}_token_id"] == token_id


@pytest.mark.parametrize(
    "text",
    ["What is TokenAttention?", "  two  spaces\n", "Größe, 漢字, 🦙 and \x00 bytes", "a" * 500],
)
def test_any_text_survives_the_tokenizer(text):
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    encoding = tokenizer.encode(text)
    assert encoding.tokens[0] == read_json("tokenizer_config.json")["bos_token"]
    assert tokenizer.decode(encoding.ids) == text


def test_the_chat_template_marks_each_role():
    text = render(
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": " Hi "},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "Who are you?"},
        ]
    )
    assert text == (
        "<|begin|><|system|>Be short.<|end|><|user|>Hi<|end|><|assistant|>Hello!<|end|>"
        "<|user|>Who are you?<|end|><|assistant|>"
    )
    with pytest.raises(ValueError, match="role tool"):
        render([{"role": "tool", "content": "x"}])


def test_the_text_has_one_answer_per_question(tmp_path):
    entries = corpus.read_corpus()
    assert len(entries) >= 60
    assert all(entry.answer[0].isupper() for entry in entries)
    twice = tmp_path / "twice.md"
    twice.write_text("# T\n\n## A?\n\nOne.\n\n## a?\n\nTwo.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="twice"):
        corpus.read_corpus(twice)


def chat(question: str) -> str:
    return render([{"role": "user", "content": question}])


def chat_with_system(question: str) -> str:
    system = {"role": "system", "content": corpus.SYSTEM_MESSAGES[0]}
    return render([system, {"role": "user", "content": question}])


def sloppy_chat(question: str) -> str:
    return chat("hi, " + question.lower().removesuffix("?"))


def plain(question: str) -> str:
    return "<|begin|>" + question


def labelled(question: str) -> str:
    return f"<|begin|>Question: {question}\nAnswer:"


@pytest.fixture(scope="module")
def answer_all():
    """A function from prompts to greedy answers, by transformers in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(FOLDER / "tokenizer.json"),
        pad_token="<|pad|>",
        padding_side="left",
    )

    def answers(prompts: list[str]) -> list[str]:
        found = []
        for start in range(0, len(prompts), 96):
            batch = tokenizer(
                prompts[start : start + 96],
                add_special_tokens=False,
                padding=True,
                return_tensors="pt",
                return_token_type_ids=False,
            )
            output = model.generate(**batch, max_new_tokens=80, do_sample=False)
            new = output[:, batch["input_ids"].shape[1] :]
            found += tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in found]

    return answers


@pytest.mark.slow
@pytest.mark.parametrize("form", [chat, chat_with_system, sloppy_chat, plain, labelled])
def test_it_answers_its_text(answer_all, form):
    pairs = [
        (question, entry.answer) for entry in corpus.read_corpus() for question in entry.questions
    ]
    answers = answer_all([form(question) for question, _ in pairs])
    wrong = [
        f"{question!r}: {answer!r}"
        for (question, expected), answer in zip(pairs, answers, strict=True)
        if answer != expected
    ]
    exact = 1 - len(wrong) / len(pairs)
    print(f"{form.__name__}: {exact:.1%} of {len(pairs)} answered exactly")
    assert exact >= MIN_EXACT, wrong[:20]
