"""Finds 32-bit products of a stride in Triton's IR: they overflow where a tensor has more than 2³¹
elements, as a KV pool or the logits of a large batch may.

A product counts if one factor is a kernel argument whose name starts with `stride` and the other
comes from a program id, a loop or memory. So strides that are compile-time constants, or named
otherwise, are not seen.
"""

from __future__ import annotations

import re

__all__ = ["narrow_products"]

_ARGUMENT = re.compile(r'(%\w+): i\d+[^%]*?loc\("(\w+)"')
_DEFINITION = re.compile(r"^\s*(%\w+)(?::(\d+))? = ([\w.]+)(.*)$")
_LOOP = re.compile(r"scf\.for (%\w+)")
_CARRIED = re.compile(r"(%\w+) = (%\w+(?:#\d+)?)")
_OPERAND = re.compile(r"%\w+")
_TYPE = re.compile(r":\s*([^:]*?)(?:\s+loc\(.*)?$")

_SAME_VALUE = ("tt.splat", "tt.broadcast", "tt.expand_dims", "arith.extsi", "arith.trunci")
_UNBOUNDED = ("tt.get_program_id", "tt.load")


def narrow_products(ttir: str) -> list[str]:
    """The offending lines of the module `ttir`, without their source locations."""
    strides = {n for n, name in _ARGUMENT.findall(_signature(ttir)) if name.startswith("stride")}
    unbounded: set[str] = set()
    found = []
    for line in ttir.splitlines():
        loop = _LOOP.search(line)
        if loop:
            unbounded.add(loop.group(1))
            unbounded.update(new for new, old in _CARRIED.findall(line) if old in unbounded)
        definition = _DEFINITION.match(line)
        if not definition:
            continue
        result, _, operation, rest = definition.groups()
        operands = set(_OPERAND.findall(rest))
        if operation in _UNBOUNDED or operands & unbounded:
            unbounded.add(result)
        if operation in _SAME_VALUE and operands & strides:
            strides.add(result)
        if operation == "arith.muli" and operands & strides and operands & unbounded:
            kind = _TYPE.search(rest)
            if kind and kind.group(1).endswith(("i32", "i32>")):
                found.append(re.sub(r"\s+loc\(.*$", "", line).strip())
    return found


def _signature(ttir: str) -> str:
    return next((line for line in ttir.splitlines() if "tt.func public" in line), "")
