"""A family brings an architecture that transformers does not know: it is made known before its config is read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from finetooth_hooks import Family, PluginError
from finetooth_kit.fake_context import FakeContext
from finetooth_transformers.builder import TransformersOptions
from finetooth_transformers.loader import TransformersLoader
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

SIZES = {
    "hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 17, "tie_word_embeddings": False,
}  # fmt: skip


def architecture(name: str, calls: list[str]) -> ModuleType:
    """A module of a plugin with a model of its own, and what makes it known."""
    config = type("OwnConfig", (LlamaConfig,), {"model_type": name})
    model = type("OwnForCausalLM", (LlamaForCausalLM,), {"config_class": config})

    def register() -> None:
        calls.append(name)
        AutoConfig.register(name, config)
        AutoModelForCausalLM.register(config, model)

    def broken() -> None:
        raise ZeroDivisionError("no heads")

    module = ModuleType(f"acme_{name}")
    module.register, module.broken = register, broken  # type: ignore[attr-defined]
    return module


def loader(tmp_path: Path, name: str, registers: str) -> TransformersLoader:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **SIZES}))
    entry = Family(name=name, build="x:y", model_types=frozenset({name}), registers=registers)
    context = FakeContext(tmp_path, entries=(entry,))
    return TransformersLoader(TransformersOptions(), context)


def test_it_is_registered_once_before_the_config_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "acme_odd1", architecture("odd1", calls))
    reads = loader(tmp_path, "odd1", "acme_odd1:register")
    info = reads.sketch(str(tmp_path))
    assert info.model_type == "odd1" and calls == ["odd1"]
    modules = reads.modules(str(tmp_path))
    assert calls == ["odd1"]
    assert modules["model.layers.0.mlp.down_proj"] == (20, 8)
    assert modules["model.layers.0.self_attn.v_proj"] == (8, 4)
    assert modules["model.embed_tokens"] == (17, 8) and modules["lm_head"] == (8, 17)


@pytest.mark.parametrize(
    ("registers", "said"),
    [
        ("acme_odd2:broken", "raised ZeroDivisionError: no heads"),
        ("acme_odd2:missing", "which does not exist"),
        ("acme_gone:register", "acme_gone"),
    ],
)
def test_one_that_cannot_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registers: str, said: str) -> None:
    monkeypatch.setitem(sys.modules, "acme_odd2", architecture("odd2", []))
    with pytest.raises(PluginError, match=rf"family 'odd2': registers '{registers}'.*{said}"):
        loader(tmp_path, "odd2", registers).sketch(str(tmp_path))


def test_other_models_do_not_import_it(tmp_path: Path) -> None:
    reads = loader(tmp_path, "odd3", "acme_gone:register")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    assert reads.sketch(str(tmp_path)).model_type == "llama"
