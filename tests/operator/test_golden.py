"""The children as files: a change of them is read in a diff, and of the serving pods numbered."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from lightllm_operator import manifests

SCRIPT = Path(__file__).parents[2] / "scripts" / "golden_manifests.py"


@pytest.fixture
def golden():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_operator_makes(golden):
    committed = {
        path.name: path.read_text(encoding="utf-8") for path in golden.FOLDER.glob("*.yaml")
    }
    assert committed == golden.rendered(), "see the module of `make golden`"


@pytest.fixture
def folder(golden, tmp_path, monkeypatch):
    """The files, written elsewhere."""
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    assert golden.write(overwrite=False) == []
    return tmp_path


def test_another_template_wants_another_number(golden, folder, monkeypatch):
    before = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    monkeypatch.setattr(manifests, "_EXIT_S", 16)
    assert golden.rendered() != before
    refused = golden.write(overwrite=False)
    assert len(refused) == 4
    assert all("TEMPLATE_VERSION" in each for each in refused)
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == before
    # with another number it is fine, and with the flag for what was never released
    monkeypatch.setattr(manifests, "TEMPLATE_VERSION", manifests.TEMPLATE_VERSION + 1)
    assert golden.write(overwrite=False) == []
    assert [path.name for path in folder.glob("deployment-*")] == [
        f"deployment-v{manifests.TEMPLATE_VERSION}.yaml"
    ]
    monkeypatch.undo()
    monkeypatch.setattr(golden, "FOLDER", folder)
    assert golden.write(overwrite=True) == []


def test_another_hash_of_the_same_spec_is_refused_whatever_the_number(golden, folder, monkeypatch):
    monkeypatch.setattr(golden, "spec_hash", lambda spec: "another")
    monkeypatch.setattr(manifests, "TEMPLATE_VERSION", manifests.TEMPLATE_VERSION + 1)
    refused = golden.write(overwrite=False)
    assert len(refused) == 4
    assert all("spec_hash" in each for each in refused)


def test_what_is_outside_of_the_pods_may_change(golden, folder, monkeypatch):
    made = manifests.deployment

    def other(*arguments):
        manifest = made(*arguments)
        manifest["spec"]["revisionHistoryLimit"] = 5
        return manifest

    monkeypatch.setattr(manifests, "deployment", other)
    assert golden.write(overwrite=False) == []
