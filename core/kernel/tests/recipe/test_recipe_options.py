"""Options of picks: checked by the model that the builder's annotation names."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from finetooth_core.plugins import builders
from finetooth_core.plugins.builders import load_builder, options_model
from finetooth_core.settings.recipe import pick_name, pick_options, validate_options
from finetooth_hooks import Entry, Loss, NoOptions, PluginError, RecipeError, Schedule
from finetooth_recipes.problems import RecipeProblems

BUILDERS = """
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finetooth_hooks import NoOptions, Options
from pydantic import Field, field_validator

if TYPE_CHECKING:
    from finetooth_hooks import Context
    from nowhere import Hidden


class Inner(Options):
    depth: int = 1


class Shown(Options):
    rank: int = Field(default=8, ge=1, le=256)
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    targets: Literal["all", "attention"] | list[str] = "all"
    inner: Inner = Inner()
    path: str | None = None
    must: int

    @field_validator("path")
    @classmethod
    def check(cls, path):
        if path == "bad":
            raise ValueError("the path is bad")
        return path


def build(options: Shown, context: Context): ...
def build_none(options: NoOptions, context: Context): ...
def build_hidden(options: Hidden, context: Context): ...
def build_bare(options, context): ...
def build_dict(options: dict, context): ...
def build_other(settings: Shown, context): ...


def decorated(function):
    @functools.wraps(function)
    def inner(*arguments):
        return function(*arguments)
    return inner


@decorated
def build_decorated(options: Shown, context: Context): ...


def build_more(options: Shown, context: Context, more): ...
def build_of_context(context: Context, more=1): return [context, more]


class Plain:
    pass


class Whole:
    def __init__(self, options: Shown, context: Context):
        self.given = [options.must, context]


class Inherits(Whole):
    pass


@dataclass
class Held:
    options: Shown
    count: int = 3


not_callable = 3
"""


@dataclass(frozen=True)
class Source:
    entry: Entry
    distribution: str = "acme"
    version: str = "1"

    @property
    def full_name(self) -> str:
        return f"{self.distribution}:{self.entry.name}"


class OneEntry:
    """A catalog that holds one entry, whatever is asked."""

    def __init__(self, build: str) -> None:
        self.source = Source(Loss(name="shown", build=build))

    def get(self, kind: str, name: str, *, setting: str = "", framework: str = "") -> Source:
        return self.source

    def all(self, kind: str) -> tuple[Source, ...]:
        return (self.source,)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(tmp_path)
    for name, source in {
        "acme_builders": BUILDERS,
        "acme_missing": "import package_that_is_not_there",
        "acme_raises": "raise RuntimeError('no such luck')",
    }.items():
        (tmp_path / f"{name}.py").write_text(dedent(source))
    yield "acme_builders"
    for name in ("acme_builders", "acme_missing", "acme_raises"):
        sys.modules.pop(name, None)


def options(module: str, pick: Any, function: str = "build", setting: str = "adapter") -> Any:
    return validate_options(OneEntry(f"{module}:{function}"), "loss", pick, setting)


def test_options_are_typed_and_defaults_filled_in(module: str) -> None:
    made = options(module, {"name": "shown", "must": 1, "rate": 1, "betas": [0.8, 0.9], "targets": ["q"]})
    assert (made.rank, made.rate, made.betas, made.targets, made.inner.depth) == (8, 1.0, (0.8, 0.9), ["q"], 1)


def test_tuples_and_paths_from_a_plugin(module: str) -> None:
    made = options(module, {"name": "shown", "must": 1, "betas": (0.8, 0.9), "path": Path("a/b")})
    assert (made.betas, made.path) == ((0.8, 0.9), "a/b")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rnak": 3}, "adapter.rnak: unknown option of loss shown (did you mean adapter.rank?)"),
        (
            {"zzz": 3},
            "adapter.zzz: unknown option of loss shown (known: betas, inner, must, path, rank, rate, targets)",
        ),
        (
            {"inner": {"detph": 3}},
            "adapter.inner.detph: unknown option of loss shown (did you mean adapter.inner.depth?)",
        ),
        ({"rank": "16"}, "adapter.rank: expected a whole number, got the text '16' (write it without quotes)"),
        ({"rank": 300}, "adapter.rank: must be at most 256, got 300 (leave it out for the default, 8)"),
        ({"rate": float("nan")}, "adapter.rate: must be a finite number, got nan"),
        ({"rate": True}, "adapter.rate: expected a number, got true"),
        ({"betas": [0.9]}, "adapter.betas.1: is required and missing"),
        ({"betas": 0.9}, "adapter.betas: expected a list, got the number 0.9"),
        (
            {"targets": "atention"},
            "adapter.targets: expected one of all, attention or a list, got the text 'atention' (did you mean att",
        ),
        ({"targets": [1]}, "adapter.targets.0: expected text, got the number 1 (put quotes around it)"),
        ({"path": "bad"}, "adapter.path: the path is bad"),
        ({"must": None}, "adapter.must: expected a whole number, got null (change adapter.must)"),
    ],
    ids=str,
)
def test_a_mistake_gets_one_line(module: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        options(module, {"name": "shown", "must": 1} | given)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["type", "lr", "batch_size"])
def test_options_on_a_command_line_are_no_settings_of_a_recipe(module: str, key: str) -> None:
    """`ft export --to gguf type=f16` was answered with `train.precision`."""
    with pytest.raises(RecipeError, match=r"--to.\w+: unknown option of loss shown \(known: betas, inner"):
        options(module, {"name": "shown", "must": 1, key: 3}, setting="--to")


def test_all_mistakes_are_named(module: str) -> None:
    with pytest.raises(RecipeProblems) as raised:
        options(module, {"name": "shown", "rank": 0})
    assert [problem.setting for problem in raised.value.problems] == ["adapter.rank", "adapter.must"]


def test_an_entry_without_options(module: str) -> None:
    assert options(module, "shown", "build_none") == NoOptions()
    with pytest.raises(RecipeError, match=r"adapter.x: unknown option of loss shown \(it takes none; remove it\)"):
        options(module, {"name": "shown", "x": 1}, "build_none")


def test_a_decorated_builder_keeps_its_options(module: str) -> None:
    assert options_model(Loss(name="x", build=f"{module}:build_decorated")).__name__ == "Shown"


@pytest.mark.parametrize("name", ["Whole", "Inherits", "Held"])
def test_a_class_is_a_builder_with_options(module: str, name: str) -> None:
    assert options_model(Loss(name="x", build=f"{module}:{name}")).__name__ == "Shown"


def test_a_builder_gets_what_it_has_parameters_for(module: str) -> None:
    def made(name: str) -> Any:
        source = Source(Schedule(name="x", build=f"{module}:{name}"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builders, "derived", lambda built, kind, registered: built)
            return builders.built(source, options(module, {"name": "shown", "must": 1}), "context")

    assert made("Whole").given == made("Inherits").given == [1, "context"]
    assert (made("Held").options.must, made("Held").count) == (1, 3)
    assert type(made("Plain")).__name__ == "Plain"
    assert made("build_of_context") == ["context", 1]
    assert {options_model(Loss(name="x", build=f"{module}:{name}")) for name in ("Plain", "build_of_context")} == {
        NoOptions
    }


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("acme_builders:build_hidden", "cannot be resolved: name 'Hidden' is not defined"),
        ("acme_builders:build_bare", "does not annotate 'options'"),
        ("acme_builders:build_other", "the builder of loss 'x' needs 'settings', which nobody gives"),
        ("acme_builders:build_more", "needs 'more', which nobody gives"),
        ("acme_builders:build_dict", "not a subclass of finetooth_hooks.Options"),
        ("acme_builders:nothing", "acme_builders has no such class or function"),
        ("acme_builders:not_callable", "acme_builders has no such class or function"),
        ("acme_builders", "acme_builders has no such class or function"),
        ("acme_missing:build", "No module named 'package_that_is_not_there'"),
        ("acme_raises:build", "cannot be imported: RuntimeError: no such luck ["),
        ("acme_nowhere:build", "No module named 'acme_nowhere'"),
    ],
)
def test_a_broken_builder_is_the_plugins_fault(module: str, reference: str, said: str) -> None:
    with pytest.raises(PluginError) as raised:
        options_model(Loss(name="x", build=reference), "acme")
    assert said in str(raised.value)
    assert str(raised.value).startswith("acme: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "raised", ["RuntimeError('no driver')", "OSError('libcuda.so: no such file')", "KeyError('x')"]
)
def test_a_library_that_breaks_while_it_is_imported_is_bad_input(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: str
) -> None:
    """What a builder itself raises stays as it is."""
    (tmp_path / "acme_library.py").write_text(f"raise {raised}\n", encoding="utf-8")
    (tmp_path / "acme_late.py").write_text(
        f"def build():\n    import acme_library\n\ndef fails():\n    raise {raised}\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_late", raising=False)
    with pytest.raises(PluginError) as caught:
        builders.built(Source(Loss(name="x", build="acme_late:build")), NoOptions(), None)
    kind = raised.partition("(")[0]
    assert caught.value.exit_code == 2 and f"loss 'x' cannot be imported: {kind}: " in caught.value.problem
    assert caught.value.action == "repair the library that raised it; --debug shows the whole traceback"
    with pytest.raises((RuntimeError, OSError, KeyError)):
        builders.built(Source(Loss(name="x", build="acme_late:fails")), NoOptions(), None)


def test_load_builder(module: str) -> None:
    assert load_builder(Loss(name="x", build=f"{module}:build")).__name__ == "build"


def test_picks() -> None:
    assert pick_name("a") == pick_name({"name": "a", "b": 1}) == "a"
    assert pick_options({"name": "a", "b": 1}) == {"b": 1}
    assert pick_options("a") == {}
    with pytest.raises(RecipeError, match="method: the mapping has no 'name'"):
        pick_name({"b": 1}, "method")
