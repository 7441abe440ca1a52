"""Train the demo model: a small LLaMA that answers the questions of `corpus.md`.

    .venv/bin/python scripts/demo_model/train.py [--out examples/demo-model]

Everything is seeded and the threads are fixed at two, so the same machine and the same torch give
the same bytes; elsewhere the weights differ in their last bits and the answers stay the same.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# threads that wait asleep: on a busy machine spinning ones make a step several times slower
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
from corpus import SYSTEM_MESSAGES, Entry, read_corpus, vary
from tokenizer import BOS, EOS, MAX_LENGTH, PAD, SPECIAL_TOKENS, save_tokenizer, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
STEPS = 600
ROWS = 16
# conversations of similar length share a batch: drawn together, sorted, then shuffled as batches
BATCHES_SORTED_TOGETHER = 16
PEAK_LEARNING_RATE = 4e-3
WARMUP_STEPS = 40
WEIGHT_DECAY = 0.05
IGNORED = -100


def model_config(tokenizer: Tokenizer) -> LlamaConfig:
    """2.3M parameters; 12 heads over 4 KV heads, so 1, 2 and 4 ranks can share the model."""
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def conversation(entries: list[Entry], rng: random.Random) -> str:
    """One training text over `entries`: a chat, or a plain completion of the first of them."""
    roll = rng.random()
    if roll < 0.15:
        entry = entries[0]
        return f"{BOS}{vary(rng.choice(entry.questions), rng)} {entry.answer}{EOS}"
    if roll < 0.3:
        entry = entries[0]
        question = vary(rng.choice(entry.questions), rng)
        return f"{BOS}Question: {question}\nAnswer: {entry.answer}{EOS}"
    system = f"<|system|>{rng.choice(SYSTEM_MESSAGES)}{EOS}" if rng.random() < 0.3 else ""
    turns = "".join(
        f"<|user|>{vary(rng.choice(entry.questions), rng)}{EOS}<|assistant|>{entry.answer}{EOS}"
        for entry in entries
    )
    return f"{BOS}{system}{turns}"


def batches(entries: tuple[Entry, ...], tokenizer: Tokenizer) -> Iterator[Tensor]:
    """Endless batches of `[ROWS, longest] int64`, padded with `IGNORED`; chats of 1-3 turns."""
    rng = random.Random(0)
    queue: list[Entry] = []
    while True:
        rows = []
        for _ in range(ROWS * BATCHES_SORTED_TOGETHER):
            turns = rng.choice((1, 1, 1, 2, 3))
            while len(queue) < turns:
                queue.extend(rng.sample(entries, len(entries)))
            text = conversation([queue.pop() for _ in range(turns)], rng)
            rows.append(torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids))
        rows.sort(key=len)
        starts = list(range(0, len(rows), ROWS))
        for start in rng.sample(starts, len(starts)):
            batch = rows[start : start + ROWS]
            yield torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=IGNORED)


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)
    return PEAK_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * done))


def train(model: LlamaForCausalLM, data: Iterator[Tensor]) -> None:
    """Run `STEPS` steps of AdamW on `model` in place, printing the loss."""
    decayed = [weight for weight in model.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if weight.ndim != 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    start = time.monotonic()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        labels = next(data)
        logits = model(input_ids=labels.clamp(min=0)[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == STEPS - 1:
            print(f"step {step:5d}  loss {loss:.4f}  {time.monotonic() - start:6.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "examples" / "demo-model")
    folder = parser.parse_args().out
    torch.manual_seed(0)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)

    entries = read_corpus()
    rng = random.Random(1)
    texts = [
        f"{vary(question, rng)} {entry.answer}"
        for entry in entries
        for question in entry.questions
        for _ in range(4)
    ]
    tokenizer = train_tokenizer([*texts, *SYSTEM_MESSAGES * 20, "Question: \nAnswer: "])
    assert all(tokenizer.token_to_id(token) is not None for token in SPECIAL_TOKENS)

    model = LlamaForCausalLM(model_config(tokenizer))
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters", flush=True)
    train(model, batches(entries, tokenizer))

    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder)
    model.to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main()
