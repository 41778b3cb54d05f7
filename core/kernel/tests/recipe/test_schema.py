"""The JSON Schema accepts what `load` accepts, and knows every installed option."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.plugins.catalog import Catalog, Registered
from finetooth_core.settings.recipe import load, setting_names
from finetooth_core.settings.schema import field_schema, recipe_schema
from finetooth_hooks import Adapter, Evaluator, Method, RecipeError, Source

jsonschema = pytest.importorskip("jsonschema")

BUILDERS = '''
from finetooth_hooks import NoOptions, Options
from pydantic import Field


class Inner(Options):
    depth: int = Field(default=1, ge=1)
    """How deep."""


class Ranked(Options):
    rank: int = Field(default=8, ge=1, le=256)
    """The rank."""
    inner: Inner = Inner()
    """Within."""


class Required(Options):
    path: str
    """Where."""


def ranked(options: Ranked, context): ...
def none(options: NoOptions, context): ...
def required(options: Required, context): ...
'''


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "schema_builders.py").write_text(BUILDERS)
    entries = [
        Adapter(name="ranked", build="schema_builders:ranked", summary="has a rank", default=True),
        Adapter(name="plain", build="schema_builders:none"),
        Adapter(name="broken", build="schema_nowhere:none"),
        Method(name="teach", build="schema_builders:none"),
        Source(name="files", build="schema_builders:required"),
        Evaluator(name="score", build="schema_builders:ranked"),
    ]
    yield Catalog([Registered(entry, "acme", "1.0") for entry in entries])
    sys.modules.pop("schema_builders", None)


@dataclass(frozen=True)
class Check:
    validator: Any

    def __call__(self, recipe: Any) -> bool:
        return bool(self.validator.is_valid(recipe))


@pytest.fixture
def accepts(catalog: Catalog) -> Check:
    schema = recipe_schema(catalog)
    jsonschema.Draft202012Validator.check_schema(schema)
    return Check(jsonschema.Draft202012Validator(schema))


GOOD: list[dict[str, Any]] = [
    {},
    {"model": {"name": "x", "loader": "auto"}},
    {"data": {"train": "a.jsonl"}},
    {"data": {"train": ["a.jsonl", {"name": "files", "path": "b"}], "eval": None}},
    {"data": {"train": [{"name": "files", "path": "b", "slice": "[:5]", "weight": 2}], "eval": {"fraction": 0.1}}},
    {"data": {"train": "a.jsonl[:10%]", "mix": {"temperature": "even"}, "snapshot": {"name": "x"}}},
    {"adapter": "ranked"},
    {"adapter": "acme:ranked"},
    {"adapter": "auto"},
    {"adapter": {"name": "ranked", "rank": 4, "inner": {"depth": 2}}},
    {"adapter": {"name": "auto", "rank": 4}},
    {"adapter": {"name": "acme:plain"}},
    {"adapter": {"name": "broken", "anything": 1}},
    {"train": {"epochs": 1, "precision": "auto", "micro_batch_tokens": 5, "gradient_checkpointing": True}},
    {"evaluate": {"evaluators": ["score", {"name": "score", "rank": 3}]}},
    {"plugins": ["a>=1", {"use": "./b.py", "options": {"c": 1}}]},
    {"trackers": [], "checkpoint": {"every": 5}, "output": "runs/x"},
]
BAD: list[dict[str, Any]] = [
    {"model": 3},
    {"modle": "x"},
    {"data": {"train": {"name": "files"}}},
    {"data": {"train": {"name": "files", "path": "b", "weight": 0}}},
    {"data": {"train": "a.jsonl", "eval": {"fraction": 1}}},
    {"data": {"mix": {"temperature": "odd"}}},
    {"adapter": "rankde"},
    {"adapter": {"rank": 4}},
    {"adapter": {"name": "ranked", "rnak": 4}},
    {"adapter": {"name": "ranked", "rank": 400}},
    {"adapter": {"name": "ranked", "rank": "4"}},
    {"adapter": {"name": "ranked", "inner": {"depth": 0}}},
    {"adapter": {"name": "plain", "rank": 4}},
    {"train": {"batch_size": 0}},
    {"train": {"precision": "fp23"}},
    {"train": {"seeed": 1}},
    {"evaluate": {"evaluators": "score"}},
    {"evaluate": {"evaluators": [{"name": "score", "rank": 0}]}},
    {"plugins": [{"us": "x"}]},
]


@pytest.mark.parametrize("recipe", GOOD, ids=str)
def test_good_recipes(accepts: Check, recipe: dict[str, Any]) -> None:
    whole = {"model": "m", **recipe}
    load(whole)
    assert accepts(whole), list(accepts.validator.iter_errors(whole))


@pytest.mark.parametrize("recipe", BAD, ids=str)
def test_bad_recipes(accepts: Check, recipe: dict[str, Any]) -> None:
    assert not accepts({"model": "m", **recipe})


def test_every_setting_is_documented(catalog: Catalog) -> None:
    for name in setting_names():
        assert field_schema(catalog, name).get("description"), name


@pytest.mark.parametrize("field", ["adapter.rank", "adapter.ranked.rank", "evaluate.evaluators.0.rank"])
def test_the_field_of_an_entry(catalog: Catalog, field: str) -> None:
    found = field_schema(catalog, field)
    assert (found["default"], found["maximum"], found["description"]) == (8, 256, "The rank.")


def test_a_field_brings_its_definitions(catalog: Catalog) -> None:
    found = field_schema(catalog, "adapter.ranked")
    validator = jsonschema.Draft202012Validator(found)
    assert validator.is_valid({"name": "ranked", "inner": {"depth": 1}})
    assert not validator.is_valid({"name": "ranked", "inner": {"depth": 0}})
    assert field_schema(catalog, "adapter.inner.depth")["description"] == "How deep."


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("trian.seed", "trian: no setting has this name (did you mean train?)"),
        ("train.batchsize", "train.batchsize: no setting has this name (did you mean train.batch_size?)"),
        ("adapter.rnk", "adapter.rnk: no setting has this name (did you mean adapter.rank?)"),
        ("train.seed.x", "train.seed.x: no setting has this name (it has none below it)"),
    ],
)
def test_an_unknown_field(catalog: Catalog, field: str, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        field_schema(catalog, field)
    assert str(raised.value) == said


def test_a_field_without_picks_imports_no_builder(catalog: Catalog) -> None:
    field_schema(catalog, "train.batch_size")
    assert "schema_builders" not in sys.modules
