"""Write the benchmark's model: a 125M LLaMA with random weights and a made-up tokenizer.

The directory is made once in the user's cache, outside the checkout, and reused: its name holds
everything that it depends on.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import string
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB_SIZE = 32000
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/lightllm-kubernetes`, or the same below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lightllm-kubernetes"


def ensure_model() -> Path:
    """The model's directory, written first if it is not there (0.25 GB, about 20 s)."""
    target = cache_dir() / "random-llama-125m-v2"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="random-llama-", dir=target.parent))
    try:
        # in a process of its own, so that the benchmark's parent never imports torch
        subprocess.run([sys.executable, __file__, str(scratch)], check=True)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE whose merges join lowercase letters to words of 2, 3 and 4 letters."""
    letters = string.ascii_lowercase
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges: list[tuple[str, str]] = []
    for length in (2, 3, 4):
        for word in itertools.product(letters, repeat=length):
            if len(tokens) == VOCAB_SIZE:
                break
            head, tail = "".join(word[:-1]), word[-1]
            tokens.append(head + tail)
            merges.append((head, tail))
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=SPECIAL_TOKENS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": SPECIAL_TOKENS[0],
        "bos_token": SPECIAL_TOKENS[1],
        "eos_token": SPECIAL_TOKENS[2],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_model(folder: Path) -> None:
    """Random weights, seed 0, in Hugging Face's layout and bfloat16, as most are published."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(torch.bfloat16)
    model.save_pretrained(folder)


if __name__ == "__main__":
    write_tokenizer(Path(sys.argv[1]))
    write_model(Path(sys.argv[1]))
