"""Loading a recipe: what is accepted, and that every mistake gets one line that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.settings.recipe import load, setting_names
from finetooth_hooks import RecipeError
from finetooth_hooks.plan import TrainSettings
from finetooth_recipes import yaml_text
from finetooth_recipes.problems import RecipeProblems
from finetooth_toolbox.text.nearest import nearest, nearest_path

WHOLE = """
model: m
data: {train: [a.jsonl, {name: tasks, count: 3}], eval: b.jsonl}
method: {name: x, beta: 0.1}
adapter: y
optimizer: {name: z, learning_rate: 2e-4}
train: {epochs: 0.5, max_steps: 7, batch_size: 3, max_length: 64, precision: bf16, micro_batch_tokens: 128}
evaluate: {before: false, every: 2, evaluators: [a, {name: b, c: 1}]}
trackers: []
plugins: ["acme>=1,<2", {use: ./ci.py, options: {min_score: 0.6}}]
output: runs/mine
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def made(text: str, name: str = "r.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return made


def test_a_whole_recipe(write: Any) -> None:
    recipe = load(write(WHOLE))
    assert recipe.model.name == "m"
    assert recipe.data.train == ["a.jsonl", {"name": "tasks", "count": 3}]
    assert recipe.optimizer == {"name": "z", "learning_rate": 2e-4}
    assert recipe.schedule == "auto"
    assert recipe.evaluate.evaluators == ["a", {"name": "b", "c": 1}]
    assert recipe.plugins == ["acme>=1,<2", {"use": "./ci.py", "options": {"min_score": 0.6}}]
    assert recipe.train.settings() == TrainSettings(
        epochs=0.5,
        max_steps=7,
        batch_size=3,
        max_length=64,
        excess_length="drop",
        seed=0,
        shuffle=True,
        precision="bf16",
        micro_batch_tokens=128,
        gradient_checkpointing=None,
        max_grad_norm=1.0,
    )


def test_the_least_recipe() -> None:
    recipe = load({"model": "m"})
    settings = recipe.train.settings()
    assert (settings.precision, settings.micro_batch_tokens, settings.gradient_checkpointing) == (None, None, None)
    assert recipe.as_dict() == {"model": "m"}  # no defaults


def test_as_dict_is_what_the_user_set(write: Any) -> None:
    recipe = load(write(WHOLE), ["train.seed=5", "adapter.rank=2"])
    given = recipe.as_dict()
    assert given["train"]["seed"] == 5
    assert given["adapter"] == {"name": "y", "rank": 2}
    assert "schedule" not in given
    assert json.loads(json.dumps(given)) == given
    given["train"]["seed"] = 6
    assert recipe.as_dict()["train"]["seed"] == 5


def test_yaml_reads_back_from_another_folder(write: Any, tmp_path: Path) -> None:
    recipe = load(write(WHOLE))
    copied = tmp_path / "runs" / "recipe.yaml"
    copied.parent.mkdir()
    copied.write_text(recipe.dump_yaml())
    again = load(copied)
    assert again.plugins[1] == {"use": str(tmp_path / "ci.py"), "options": {"min_score": 0.6}}
    assert again.plugins[0] == "acme>=1,<2"
    same = {"plugins": None}
    assert again.as_dict() | same == recipe.as_dict() | same
    assert again.folder == copied.parent


@pytest.mark.parametrize("model", ["m", {"name": "m", "loader": "x"}])
def test_a_kept_model_path_is_absolute(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert yaml_text.read_yaml(load({"model": model}).dump_yaml(), "r").value == {"model": model}  # a name, a hub id
    (tmp_path / "m").mkdir()
    recipe = load({"model": model})
    kept = yaml_text.read_yaml(recipe.dump_yaml(), "r").value["model"]
    absolute = str(tmp_path / "m")
    assert kept == (absolute if isinstance(model, str) else {**model, "name": absolute})
    assert recipe.as_dict() == {"model": model}
    recipe.model_is_name()
    assert yaml_text.read_yaml(recipe.dump_yaml(), "r").value == {"model": model}


def test_nearest_sees_past_what_all_names_share(tmp_path: Path) -> None:
    known = ["finetooth-lora", "finetooth-sft", "acme-lion"]
    assert nearest("finetooth-nope", known, prefix="finetooth-") is None
    assert nearest("lora", known, prefix="finetooth-") == "finetooth-lora"
    assert nearest("finetooth-loar", known, prefix="finetooth-") == "finetooth-lora"
    assert nearest("acme-loin", known, prefix="finetooth-") == "acme-lion"
    for name in ("train.jsonl", "train.csv", "notes.yaml"):
        (tmp_path / name).touch()
    assert nearest_path(tmp_path / "trnc.jsonl") == tmp_path / "train.jsonl"
    assert nearest_path(tmp_path / "eval.jsonl") is None
    assert nearest_path(tmp_path / "trane.csv") == tmp_path / "train.csv"
    assert nearest_path(tmp_path / "note.yml", (".yaml", ".yml")) == tmp_path / "notes.yaml"
    assert nearest_path(tmp_path / "gone" / "train.jsonl") is None


def test_paths_and_tuples_from_python() -> None:
    recipe = load({"model": Path("m/n"), "data": {"train": (Path("a"), "b")}})
    assert recipe.as_dict() == {"model": "m/n", "data": {"train": ["a", "b"]}}


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        load({"model": "m"}).output = "x"  # type: ignore[misc]


MISTAKES = [
    # unknown keys, at any depth
    ("batch_size=3", "batch_size: unknown setting (did you mean train.batch_size?)"),
    ("scale.device=2", "scale.device: unknown setting (did you mean scale.devices?)"),
    ("trian.seed=1", "trian: unknown setting (did you mean train?)"),
    ("train.batchsize=1", "train.batchsize: unknown setting (did you mean train.batch_size?)"),
    ("train.Batch-Size=1", "train.Batch-Size: unknown setting (did you mean train.batch_size?)"),
    ("evaluate.evry=1", "evaluate.evry: unknown setting (did you mean evaluate.every?)"),
    ("plugins=[{us: x}]", "plugins.0.us: unknown setting (did you mean plugins.0.use?)"),
    ("model={name: x, lodaer: y}", "model.lodaer: unknown setting (did you mean model.loader?)"),
    ("zebra=1", "zebra: unknown setting (known: adapter,"),
    # wrong types
    ("train.batch_size='3'", "train.batch_size: expected a whole number, got the text '3' (write it without quotes)"),
    ("train.batch_size=2.5", "train.batch_size: expected a whole number, got the number 2.5"),
    ("train.batch_size=8.0", "train.batch_size: expected a whole number, got the number 8.0"),
    ("train.batch_size=true", "train.batch_size: expected a whole number, got true"),
    ("train.batch_size=null", "train.batch_size: expected a whole number, got null (leave it out for the default, 8)"),
    ("train.batch_size=[1]", "train.batch_size: expected a whole number, got a list"),
    ("train.epochs=many", "train.epochs: expected a number, got the text 'many'"),
    (
        "train.shuffle=yes",
        "train.shuffle: expected true or false or one of shortest_first, longest_first, got the text 'yes'",
    ),
    (
        "train.shuffle=1",
        "train.shuffle: expected true or false or one of shortest_first, longest_first, got the number 1",
    ),
    ("train.micro_batch_tokens=lots", "train.micro_batch_tokens: expected auto or a whole number, got the text 'lots'"),
    ("train=fast", "train: expected a mapping, got the text 'fast' (write {epochs: ..., max_steps: ...})"),
    ("data=x.jsonl", "data: expected a mapping, got the text 'x.jsonl' (write {train: ..., eval: ...})"),
    ("trackers=console", "trackers: expected auto or a list, got the text 'console' (write [console])"),
    ("plugins=[3]", "plugins.0: expected text or a mapping, got the number 3"),
    ("output=2024", "output: expected text, got the number 2024 (put quotes around it)"),
    ("train.num_train_epochs=3", "train.num_train_epochs: unknown setting (did you mean train.epochs?)"),
    ("train.save_steps=100", "train.save_steps: unknown setting (did you mean checkpoint.every?)"),
    ("data.eval=0.1", "got the number 0.1 (name a file of rows, or write {fraction: 0.1})"),
    ("data.eval=200", "got the number 200 (name a file of rows, or write {fraction: 0.05})"),
    ("model=7", "model: expected a name or a mapping with 'name', got the number 7"),
    ("adapter=[a]", "adapter: expected text or a mapping, got a list"),
    # choices
    ("train.precision=fp23", "expected one of auto, fp32, bf16, fp16, fp8, got the text 'fp23' (did you mean fp32?)"),
    (
        "train.excess_length=cut",
        "expected one of drop, truncate, truncate_answers, truncate_turns, split, raise, got the text 'cut'",
    ),
    # out of range
    ("train.batch_size=0", "train.batch_size: must be at least 1, got 0"),
    ("train.epochs=0", "train.epochs: must be more than 0, got 0"),
    ("train.epochs=.nan", "train.epochs: must be a finite number, got nan"),
    ("train.max_grad_norm=.inf", "train.max_grad_norm: must be a finite number, got inf"),
    ("optimizer.learning_rate=.nan", "optimizer.learning_rate: must be a finite number, got nan"),
    ("method={name: x, a: [1, -.inf]}", "method.a.1: must be a finite number, got -inf"),
    ("train.max_length=1", "train.max_length: must be at least 2, got 1"),
    ("train.max_steps=0", "train.max_steps: must be at least 1, got 0"),
    ("train.seed=-1", "train.seed: must be at least 0, got -1"),
    ("train.seed=99999999999999999999", "train.seed: must be less than 9223372036854775808"),
    ("train.micro_batch_tokens=0", "train.micro_batch_tokens: must be at least 1, got 0"),
    ("evaluate.every=-1", "evaluate.every: must be at least 0, got -1"),
    ("checkpoint.every=-1", "checkpoint.every: must be at least 0, got -1"),
    # picks
    ("method={beta: 1}", "method: the mapping has no 'name' that picks an entry (add name: NAME)"),
    ("method={name: 3}", "method: the mapping has no 'name' that picks an entry"),
    ("method=''", "method: the name is empty"),
    ("model=''", "model.name: must not be empty"),
    ("output=''", "output: must not be empty"),
    ("data.train=[a, {path: x}]", "data.train.1: the mapping has no 'name' that picks an entry"),
    ("evaluate.evaluators=[{}]", "evaluate.evaluators.0: the mapping has no 'name' that picks an entry"),
    ("hardware={name: auto, threads: 2}", "hardware: options need a pick by name here, not 'auto'"),
    ("data.eval=\ud800", "data.eval: '\\ud800' is not valid Unicode text"),
]


@pytest.mark.parametrize(("override", "said"), MISTAKES, ids=[mistake[0][:40] for mistake in MISTAKES])
def test_a_mistake_gets_one_line(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load({"model": "m"}, [override])
    assert said in str(raised.value)
    assert str(raised.value).endswith(")"), "the line ends with what to do"
    assert "\n" not in str(raised.value)
    assert "pydantic" not in str(raised.value).lower()
    assert raised.value.exit_code == 2


def test_a_mistake_in_a_file_names_its_line(write: Any) -> None:
    path = write("model: m\ntrain:\n  batch_size: 0\n  seeed: 1\n")
    with pytest.raises(RecipeProblems) as raised:
        load(path)
    assert str(raised.value).splitlines() == [
        f"train.batch_size: must be at least 1, got 0, at {path}:3 (leave it out for the default, 8)",
        f"train.seeed: unknown setting, at {path}:4 (did you mean train.seed?)",
    ]
    assert len(raised.value.problems) == 2


def test_the_line_is_not_named_for_an_override(write: Any) -> None:
    with pytest.raises(RecipeError) as raised:
        load(write("model: m\ntrain: {seed: 1}\n"), ["train.seed=-1"])
    assert ".yaml" not in str(raised.value)


def test_a_missing_model() -> None:
    with pytest.raises(RecipeError, match=r"model: is required and missing \(set model, or"):
        load({})
    with pytest.raises(RecipeError) as raised:
        load({"modle": "x"})
    assert str(raised.value) == "modle: unknown setting (did you mean model?)"  # and not also: model is missing


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the recipe is empty"),
        (b"# only a comment\n", "the recipe is empty"),
        (b"- a\n", "a recipe is a mapping, this is a list"),
        (b"just text", "a recipe is a mapping, this is the text 'just text'"),
        (b"model: m\nx: \xff\n", ":2: not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as raised:
        load(path)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_missing_file_names_the_nearest(write: Any, tmp_path: Path) -> None:
    path = write("model: m", "quickstart.yaml")
    with pytest.raises(RecipeError) as raised:
        load(tmp_path / "quikstart.yaml")
    assert f"did you mean {path}?" in str(raised.value)
    with pytest.raises(RecipeError, match="is a folder, not a recipe"):
        load(tmp_path)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: m\r\n")
    assert load(path).model.name == "m"


def test_what_a_sweep_tries_is_passed_over_and_said(write: Any) -> None:
    """A recipe with a search space is run like any other, and keeps it."""
    space = {"space": {"adapter.rank": [4, 8]}}
    found = load(write(f"model: m\nsweep: {json.dumps(space)}\n"))
    assert found.notes == ("sweep is ignored here: ft sweep tries its settings",)
    assert found.as_dict() == {"model": "m", "sweep": space} and load({"model": "m"}).notes == ()


def test_values_a_recipe_cannot_hold() -> None:
    with pytest.raises(RecipeError, match=r"data.train: is a set, which a recipe cannot hold"):
        load({"model": "m", "data": {"train": {"a"}}})
    with pytest.raises(RecipeError, match="the key 1 is not a text"):
        load({"model": "m", "method": {1: "x"}})


def test_all_that_is_wrong_with_a_recipe_is_told_at_once(write: Any) -> None:
    """Whatever section it is in, and inside sources and the held-out part, which `data` takes as they are."""
    path = write(
        """\
model: 3
data:
  train:
    - {name: jsonl, path: a, weight: -1, slice: 3}
    - {name: jsonl, path: b, max_rows: 0, format: {rank: 1}}
  eval: {fraction: 2, sed: 1}
  cache_gb: -1
train: {batch_size: 0}
"""
    )
    with pytest.raises(RecipeProblems) as raised:
        load(path)
    found = {problem.setting: str(problem) for problem in raised.value.problems}
    assert set(found) == {
        "model", "data.train.0.weight", "data.train.0.slice", "data.train.1.max_rows", "data.train.1.format",
        "data.eval.fraction", "data.eval.sed", "data.cache_gb", "train.batch_size",
    }  # fmt: skip
    for setting, line in {"data.train.0.weight": 4, "data.train.1.max_rows": 5, "data.eval.sed": 6}.items():
        assert f"{path.name}:{line}" in found[setting]
    assert "did you mean data.eval.seed?" in found["data.eval.sed"]
    with pytest.raises(RecipeError, match=r"data\.train\.weight: must be more than 0"):  # one source, one problem
        load({"model": "m", "data": {"train": {"name": "jsonl", "path": "a", "weight": 0}}})


def test_setting_names() -> None:
    names = setting_names()
    assert "train.batch_size" in names
    assert "adapter" in names
    assert "train" not in names


@pytest.mark.parametrize(
    ("name", "choices", "meant"),
    [
        ("learningRate", ["learning_rate", "rate"], "learning_rate"),
        ("lr", ["learning_rate"], None),
        ("bacth_size", ["batch_size", "max_size"], "batch_size"),
        ("x", [], None),
    ],
)
def test_nearest(name: str, choices: list[str], meant: str | None) -> None:
    assert nearest(name, choices) == meant
