"""The demo model's text: questions with several phrasings and one answer each.

`corpus.md` is the source: a `##` heading is a question, the `-` items below it are other ways to
ask it, and the paragraph after them is the answer. Nothing here imports torch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

CORPUS_PATH = Path(__file__).with_name("corpus.md")

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You answer questions about LightLLM for Kubernetes.",
    "Answer briefly.",
    "You are a helpful assistant for an inference server. Be short and precise.",
)
_LEADS = ("", "", "", "Please tell me: ", "Hi! ", "Hello, ", "Tell me, ", "Quick question: ")
_TAILS = ("", "", "", " Thanks!", " Please.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One answer and the ways to ask for it; the first phrasing is the heading."""

    questions: tuple[str, ...]
    answer: str


def read_corpus(path: Path = CORPUS_PATH) -> tuple[Entry, ...]:
    """Parse the corpus; raises ValueError naming the question that lacks an answer or repeats."""
    entries = tuple(
        _parse_entry(block) for block in path.read_text(encoding="utf-8").split("\n## ")[1:]
    )
    seen: set[str] = set()
    for entry in entries:
        for question in entry.questions:
            if question.lower() in seen:
                raise ValueError(f"{path.name}: the question {question!r} is there twice")
            seen.add(question.lower())
    return entries


def _parse_entry(block: str) -> Entry:
    heading, *lines = (line.strip() for line in block.splitlines())
    others = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    answer = " ".join(line for line in lines if line and not line.startswith("- "))
    if not answer:
        raise ValueError(f"the question {heading!r} has no answer")
    return Entry(questions=(heading, *others), answer=answer)


def vary(question: str, rng: random.Random) -> str:
    """The question as a hurried person may type it: case, mark, greeting, thanks."""
    roll = rng.random()
    if roll < 0.15:
        question = question.lower()
    elif roll < 0.2:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.25:
        question = question.removesuffix("?").removesuffix(".")
    if rng.random() < 0.3:
        question = rng.choice(_LEADS) + question + rng.choice(_TAILS)
    return question
