"""No package runs deserialised code, opens a ZeroMQ port, or evaluates text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("operator/lightllm_operator", "server/lightllm_server", "kernels/lightllm_kernels")
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "rpyc"}
BANNED_CALLS = {"send_pyobj", "recv_pyobj", "eval", "exec", "compile_restricted"}
BANNED_KEYWORDS = {("weights_only", False), ("trust_remote_code", True), ("allow_pickle", True)}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def offences(source: str) -> Iterator[str]:
    """Each way in which the source breaks the rule, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            yield from (f"line {node.lineno}: import {name}" for name in names & BANNED_MODULES)
        elif (
            isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in BANNED_MODULES
        ):
            yield f"line {node.lineno}: from {node.module} import"
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            called_on_module = isinstance(node.func, ast.Attribute)
            if name in BANNED_CALLS and not (name in {"eval", "exec"} and called_on_module):
                yield f"line {node.lineno}: {name}()"
            addresses = [str(getattr(word, "value", "")) for word in node.args]
            if name in {"bind", "connect"} and any(a.startswith("tcp:") for a in addresses):
                yield f"line {node.lineno}: {name}({addresses[0]})"
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if (keyword.arg, value) in BANNED_KEYWORDS:
                    yield f"line {node.lineno}: {keyword.arg}={value}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "socket.recv_pyobj()",
        "torch.load(path, weights_only=False)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "socket.bind('tcp://*:5555')",
        "eval(text)",
    ],
)
def test_the_rule_sees_each_offence(source: str) -> None:
    assert list(offences(source))


def test_no_source_breaks_the_rule() -> None:
    assert len(sources()) > 50
    found = {
        str(path.relative_to(ROOT)): broken
        for path in sources()
        if (broken := list(offences(path.read_text())))
    }
    assert not found
