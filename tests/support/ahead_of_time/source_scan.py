"""Finds, from their source alone, a package's Triton kernels and the public functions that start
them: what the compile gate must have visited.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["kernel_entries", "launchers"]

_LAUNCH = "launch"


@dataclass(slots=True)
class _Function:
    is_kernel: bool
    is_public: bool
    uses: set[str]


@dataclass(slots=True)
class _Module:
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    imported: dict[str, str] = field(default_factory=dict)
    public: set[str] = field(default_factory=set)


def kernel_entries(package: Path) -> set[str]:
    """ "module.function" of each @triton.jit function that no other one calls."""
    functions = _functions(package)
    called = {u for f in functions.values() if f.is_kernel for u in f.uses}
    return {name for name, f in functions.items() if f.is_kernel and name not in called}


def launchers(package: Path) -> set[str]:
    """ "module.function" of each public function that starts a kernel, itself or through others;
    references start none, but may share what does."""
    functions = _functions(package)
    target = f"{package.name}.triton_launch.{_LAUNCH}"
    reaching = {target}
    while True:
        more = {n for n, f in functions.items() if f.uses & reaching} - reaching
        if not more:
            break
        reaching |= more
    return {
        n for n in reaching - {target} if functions[n].is_public and not n.endswith("_reference")
    }


def _functions(package: Path) -> dict[str, _Function]:
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        module = _read(ast.parse(path.read_text()))
        for function in module.functions.values():
            found[f"{name}.{function.name}"] = _Function(
                is_kernel=any("jit" in ast.unparse(d) for d in function.decorator_list),
                is_public=function.name in module.public,
                uses=_uses(function, name, module),
            )
    return found


def _read(tree: ast.Module) -> _Module:
    module = _Module()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            module.functions[node.name] = node
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                module.imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                module.imported[alias.asname or alias.name] = alias.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
                module.public = set(ast.literal_eval(node.value))
    return module


def _uses(function: ast.FunctionDef, module_name: str, module: _Module) -> set[str]:
    """Full names of the functions that the body mentions."""
    used = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            if node.id in module.functions:
                used.add(f"{module_name}.{node.id}")
            elif node.id in module.imported:
                used.add(module.imported[node.id])
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = module.imported.get(node.value.id)
            if owner:
                used.add(f"{owner}.{node.attr}")
    return used - {f"{module_name}.{function.name}"}
