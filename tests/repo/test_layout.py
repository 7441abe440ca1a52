"""Facts of the repository's layout that tools and installs rely on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    return [Path(name) for name in names if name]


def test_no_package_hides_the_standard_library() -> None:
    # an `operator/__init__.py` would replace the standard library's operator module
    roots = {"operator", "server", "kernels"}
    inits = [path for path in tracked() if path.name == "__init__.py"]
    assert [str(path) for path in inits if str(path.parent) in roots] == []
    assert [str(path) for path in inits if path.parts[0] == "tests"] == []


def test_the_lock_file_is_hashed_and_names_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pinned = re.findall(r"^[a-z0-9._\[\]-]+==\S+ \\$", lock, re.MULTILINE | re.IGNORECASE)
    unpinned = re.findall(r"^[a-z0-9._-]+(?:==\S+)?$", lock, re.MULTILINE | re.IGNORECASE)
    assert len(pinned) > 50
    assert unpinned == []


def test_the_lock_file_has_every_dependency() -> None:
    lock = (ROOT / "requirements.lock").read_text().lower()
    project = (ROOT / "pyproject.toml").read_text()
    listed = project.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    names = re.findall(r'"([A-Za-z0-9_-]+)(?:[<>=]|")', listed)
    assert len(names) > 20
    assert [name for name in names if f"\n{name.lower().replace('_', '-')}==" not in lock] == []


def test_readme_gives_the_two_commands_and_ci_runs_one_of_them() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_no_file_is_too_large_for_the_repository() -> None:
    large = {str(p): p.stat().st_size for p in map(ROOT.joinpath, tracked()) if p.is_file()}
    assert {name: size for name, size in large.items() if size > 6 * 2**20} == {}


def test_the_images_locks_are_parts_of_the_whole() -> None:
    whole = set((ROOT / "requirements.lock").read_text().splitlines())
    for name in ("operator", "server"):
        lock = (ROOT / f"requirements-{name}.lock").read_text().splitlines()
        pins = {line for line in lock if "==" in line and not line.startswith("#")}
        assert len(pins) > 20
        assert pins <= whole, name
    assert not any(line.startswith("torch==") for line in _pins("requirements-operator.lock"))


def _pins(name: str) -> list[str]:
    return (ROOT / name).read_text().splitlines()


def test_the_chart_brings_the_api_as_it_is() -> None:
    source = ROOT / "crds" / "lightllmdeployments.serving.lightllm.io.yaml"
    copy = ROOT / "charts" / "lightllm-operator" / "files" / "crd.yaml"
    assert copy.read_text() == source.read_text()
