"""What README, Makefile and the architecture page name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server" / "lightllm_server"
OPERATOR = ROOT / "operator" / "lightllm_operator"


def in_backticks(page: str) -> set[str]:
    return set(re.findall(r"`([^`\s]+)`", (ROOT / page).read_text()))


def test_every_file_of_the_architecture_page_exists() -> None:
    words = in_backticks("docs/architecture.md")
    named = {word for word in words if word.endswith((".py", "/")) and ":" not in word}
    assert len(named) > 30
    assert [n for n in sorted(named) if not ((SERVER / n).exists() or (ROOT / n).exists())] == []
    # the tree of processes stands in a block of its own
    block = (ROOT / "docs/architecture.md").read_text().split("```")[1]
    files = re.findall(r"\S+\.py", block)
    assert len(files) == 6
    assert [name for name in files if not (SERVER / name).is_file()] == []


def test_every_file_of_the_operators_page_exists() -> None:
    words = in_backticks("docs/operator.md")
    named = {word for word in words if word.endswith((".py", "/", ".yaml")) and ":" not in word}
    assert len(named) > 10
    assert [n for n in sorted(named) if not ((OPERATOR / n).exists() or (ROOT / n).exists())] == []


def test_every_script_of_the_makefile_exists() -> None:
    named = re.findall(r"\S+\.py", (ROOT / "Makefile").read_text())
    assert len(named) >= 3
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize(
    "page", ["README.md", "docs/architecture.md", "docs/operator.md", "docs/security.md"]
)
def test_every_link_and_target_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make ([a-z][a-z-]+)[`\s]", text)
    assert targets
    assert [name for name in targets if f"\n{name}:" not in makefile] == []
