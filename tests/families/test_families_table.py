"""The table in docs/families.md: complete, and what it says of a tiny model of each family is what the model does."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from finetooth_kit import FakeContext
from finetooth_transformers import assembling
from finetooth_transformers.builder import TransformersOptions
from finetooth_transformers.loader import TransformersLoader

sys.path.insert(0, str(Path(__file__).parent))

from page import PAGE, RESULTS, TEMPLATE_RESULTS, page
from template_suites import CASES, SUITES, Judged, carried
from tiny_families import ABSENT, COLUMNS, TYPES, Tiny

SAID: dict[str, dict[str, list[Any]]] = json.loads(RESULTS.read_text(encoding="utf-8"))
SPOKEN: dict[str, dict[str, list[Any]]] = json.loads(TEMPLATE_RESULTS.read_text(encoding="utf-8"))
QUICK = ("qwen3_moe",)
QUICK_TEMPLATES = (
    "qwen3_8", "gemma4", "smolvlm", "llava_next", "nemotron_3_5_lightning",
    *(name for name, case in CASES.items() if case.written),
)  # fmt: skip
"""The others are slow."""


def test_the_page_is_that_of_the_results() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(SAID, SPOKEN), "run: python tests/families/page.py"


def test_every_type_of_a_family_has_a_row_and_every_no_a_reason() -> None:
    plugins = Path(__file__).parents[2] / "plugins/families"
    named = {
        kind
        for folder in plugins.iterdir() if (folder / "src").is_dir()
        for entry in import_module(f"finetooth_{folder.name}.plugin").ft_families()
        for kind in entry.model_types
    }  # fmt: skip
    assert named and named <= TYPES.keys() | ABSENT.keys()
    assert list(SAID) == list(TYPES) and all(list(cells) == list(COLUMNS) for cells in SAID.values())
    assert all(works or why for cells in SAID.values() for works, why in cells.values())


def test_every_template_at_hand_has_a_row() -> None:
    """One that a newer trl carries needs a case."""
    assert carried().keys() <= CASES.keys() and list(SPOKEN) == list(CASES)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK_TEMPLATES else pytest.mark.slow) for name in CASES]
)
def test_a_cell_says_what_the_renderer_does(name: str, suite: str) -> None:
    if name not in carried() and not CASES[name].written:
        pytest.skip(f"no template {name} here")
    assert list(Judged(name).cell(suite)) == SPOKEN[name][suite]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    return {}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in TYPES]
)
def test_a_cell_says_what_the_model_does(
    models: dict[str, Tiny], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
    kind: str, column: str,
) -> None:  # fmt: skip
    if kind not in models:
        models.clear()
        models[kind] = Tiny(kind, tmp_path_factory.mktemp(kind.replace("/", "-")))
    monkeypatch.setenv("FT_CACHE", str(models[kind].folder / "cache"))
    assert list(models[kind].cell(column)) == SAID[kind][column]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_a_model_that_comes_module_by_module_is_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an accelerator gets it, and as transformers loads it whole: tensors and their types, the config, and what it
    says of sampling. An accelerator gets none whole."""
    Tiny(kind, tmp_path)
    loader, assemble = TransformersLoader(TransformersOptions(), FakeContext(tmp_path)), assembling.assemble
    put_together: list[Any] = []

    def noted(*given: Any, **named: Any) -> Any:
        put_together.append(assemble(*given, **named))
        return put_together[-1]

    monkeypatch.setattr("finetooth_transformers.loader.assemble", noted)
    for precision in ("fp32", "bf16"):
        load = partial(loader.load, str(tmp_path / "model"), framework="torch", precision=precision)
        whole, apart = load(device="cpu"), load(device="cpu:0")  # the second is not `cpu` by its name
        assert put_together[-1:] == [apart]
        tensors = [dict((*model.named_parameters(), *model.named_buffers())) for model in (whole, apart)]
        assert tensors[0].keys() == tensors[1].keys()
        for name, tensor in tensors[0].items():
            assert tensor.dtype == tensors[1][name].dtype and torch.equal(tensor, tensors[1][name]), name
        assert whole.config.to_dict() == apart.config.to_dict()
        assert whole.generation_config.to_dict() == apart.generation_config.to_dict()
