"""What docs/guides/write-a-family.md promises: a made-up architecture, in at most 120 lines, does what others do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tiny_families
from acme_ostrich import modeling
from finetooth_core.cli import main
from tiny_families import Tiny


@pytest.fixture(scope="module")
def ostrich(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Its config has names of its own for all sizes."""
    with pytest.MonkeyPatch.context() as patch:
        modeling.register()
        patch.setattr(tiny_families, "OWN", {})
        patch.setattr(tiny_families, "TYPES", {"ostrich": {}})
        tiny = Tiny("ostrich", tmp_path_factory.mktemp("ostrich"))
    train = tiny.run
    tiny.run = lambda name, **sections: train(name, **{"plugins": ["acme_ostrich"], **sections})  # type: ignore[method-assign]
    return tiny


@pytest.fixture(autouse=True)
def cache(ostrich: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_CACHE", str(ostrich.folder / "cache"))


def test_the_guide_needs_few_lines() -> None:
    files = (Path(__file__).parent / "acme_ostrich").glob("*.py")
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= 120


@pytest.mark.parametrize("column", ["sft", "dpo", "grpo", "packed", "quantised", "export"])
def test_it_does_what_others_do(ostrich: Tiny, column: str) -> None:
    assert ostrich.cell(column) == (True, "")


def test_experts_that_all_layers_share_are_adapted(ostrich: Tiny) -> None:
    """By their path in the model, since they lie in none of its layers."""
    adapter = {"name": "lora", "rank": 2, "targets": [], "target_parameters": ["pool.rise", "pool.fall"]}
    first, second = ostrich.run("experts", adapter=adapter)
    assert second["loss"] < first["loss"]


def test_without_its_plugin_the_message_says_what_is_missing(
    ostrich: Tiny, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (ostrich.folder / "unknown").mkdir(exist_ok=True)
    (ostrich.folder / "unknown/config.json").write_text('{"model_type": "ostrich_2"}')
    assert main(["doctor", "model", str(ostrich.folder / "unknown")]) == 2
    said = capsys.readouterr().err
    assert "does not recognize this architecture" in said and "whose family registers it" in said
