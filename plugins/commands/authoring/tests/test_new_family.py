"""`ft plugins new NAME --kind family --model MODEL`: a family that is read off a model of a type that nobody knows."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from finetooth_core.cli import main
from finetooth_kit.families import SIZES, assert_facts
from finetooth_kit.tiny_runs import write_model

transformers = pytest.importorskip("transformers")


def module_of(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("model_type", ["persimmon", "gpt_neox", "stablelm", "nanochat"])
def test_the_facts_that_it_writes_are_those_of_another_model_of_the_type(model_type: str, tmp_path: Path) -> None:
    model, plugin = write_model(tmp_path / "model", model_type), tmp_path / "plugin"
    arguments = ["plugins", "new", "acme-odd", "--kind", "family", "--model", str(model), "--folder", str(plugin)]
    assert main(arguments) == 0
    family = module_of(plugin / "src/acme_odd/family.py").ThisFamily()
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, "hidden_size": 64})
    assert_facts(family, config, rtol=1.3e-6, atol=1e-5)
    read = family.facts(json.loads((model / "config.json").read_text(encoding="utf-8")))
    assert (read.hidden_size, read.layers, read.heads, read.head_dim, read.max_positions) == (32, 2, 4, 8, 256)
    (entry,) = module_of(plugin / "src/acme_odd/plugin.py").ft_families()
    assert entry.model_types == {model_type}


def test_its_own_tests_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plugin = write_model(tmp_path / "model", "stablelm"), tmp_path / "plugin"
    arguments = ["plugins", "new", "acme-stable", "--kind", "family", "--model", str(model), "--folder", str(plugin)]
    assert main(arguments) == 0
    monkeypatch.syspath_prepend(str(plugin / "src"))
    tests = module_of(plugin / "tests/test_acme_stable.py")
    tests.test_facts_are_those_of_a_tiny_model()
    tests.test_sizes_are_those_of_the_model_that_was_read()
    assert "acme_stable.family" in sys.modules


def test_a_type_that_a_family_knows_names_the_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, plugin = write_model(tmp_path / "model"), tmp_path / "plugin"
    assert main(["plugins", "new", "acme-x", "--kind", "family", "--model", str(model), "--folder", str(plugin)]) == 2
    assert "needs no plugin: the family finetooth-llama:llama knows models of type llama" in capsys.readouterr().err
    assert not plugin.exists()


def test_other_kinds_are_read_off_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "acme-x", "--kind", "loss", "--model", "hob", "--folder", str(tmp_path / "x")]) == 2
    assert "--model: a plugin of kind loss is not written from a model" in capsys.readouterr().err
