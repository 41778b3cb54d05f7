"""Checks that every entry passes, whatever its kind."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np
from finetooth_hooks.entries import ENTRY_TYPES, Exporter
from finetooth_hooks.errors import FinetoothError, PluginError

from finetooth_kit.builders import builder, filled, options_model
from finetooth_kit.checks import ANY, CheckSkipped, EntryCase, check_for, expect, expect_instance, fail

_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@check_for(ANY)
def name_is_well_formed(case: EntryCase) -> None:
    """Lower case letters, digits, `_` and `-`, a letter first."""
    expect(_NAME.fullmatch(case.entry.name), "entry.name", repr(case.entry.name), _NAME.pattern)


@check_for(ANY)
def entry_is_of_a_known_kind(case: EntryCase) -> None:
    """Its kind is one of the contract's, and it is frozen."""
    wanted = ENTRY_TYPES.get(case.entry.kind)
    expect(wanted is not None, "entry.kind", repr(case.entry.kind), f"one of {sorted(ENTRY_TYPES)}")
    params = getattr(type(case.entry), "__dataclass_params__", None)
    expect(params is not None and params.frozen, "type(entry)", type(case.entry).__name__, "a frozen dataclass")


@check_for(ANY)
def has_a_summary(case: EntryCase) -> None:
    """One line that `ft plugins list` shows."""
    summary = case.entry.summary
    expect(summary.strip() and "\n" not in summary, "entry.summary", repr(summary), "one line that says what it is")


@check_for(ANY)
def builder_resolves(case: EntryCase) -> None:
    """`build` names a class or function in a module that imports, and it needs nothing but `options` and `context`."""
    try:
        function = builder(case.entry)
    except PluginError as error:
        fail(f"import of {case.entry.build}", error, "a module that imports and has that name")
    expect(callable(function), case.entry.build, repr(function), "a callable")
    if case.entry.kind == "command":
        return
    parameters = inspect.signature(function).parameters.values()
    needed = {one.name for one in parameters if one.default is one.empty}
    expect(needed <= {"options", "context"}, case.entry.build, f"parameters {sorted(needed)}", "options, context")


@check_for(ANY)
def options_are_an_options_model(case: EntryCase) -> None:
    """The annotation of `options` is a subclass of `finetooth_hooks.Options`."""
    if case.entry.kind == "command":
        return
    try:
        options_model(case.entry)
    except PluginError as error:
        fail(f"annotation of `options` in {case.entry.build}", error, "a subclass of finetooth_hooks.Options")


@check_for(ANY)
def options_are_documented(case: EntryCase) -> None:
    """A docstring stands under every field, and the model has one of its own or is `NoOptions`."""
    if case.entry.kind == "command":
        return
    model = options_model(case.entry)
    for name, field in model.model_fields.items():
        documented = field.description and field.description.strip()
        expect(documented, f"{model.__name__}.{name}", "no docstring under the field", "one sentence that documents it")


PICKED: Mapping[str, frozenset[str]] = {
    "source": frozenset({"slice", "max_rows", "weight", "sha256", "format"}),
    "reward": frozenset({"weight", "label"}),
    "loss": frozenset({"weight"}),
}
"""Keys other than `name` that a recipe reads itself in a mapping that picks an entry of a kind."""


@check_for(ANY)
def options_can_be_set(case: EntryCase) -> None:
    """No option is called as a key that the recipe reads itself in the mapping that picks the entry: `name` says which
    entry it is, so that no recipe could set an option of that name."""
    if case.entry.kind == "command":
        return
    taken = {"name"} | PICKED.get(case.entry.kind, frozenset())
    names = {
        spelled for name, field in options_model(case.entry).model_fields.items() for spelled in (name, field.alias)
    }
    expect(
        not taken & names,
        f"options of {case.entry.build}",
        f"an option {', '.join(sorted(map(str, taken & names)))!r}, which no recipe can set",
        "another name, such as `run_name`",
    )


@check_for(ANY)
def options_have_a_json_schema(case: EntryCase) -> None:
    """The options appear in `ft schema`: JSON Schema can say them, and defaults are JSON."""
    if case.entry.kind == "command":
        return
    model = options_model(case.entry)
    try:
        json.dumps(model.model_json_schema(), allow_nan=False)
    except Exception as error:
        fail(f"{model.__name__}.model_json_schema()", f"{type(error).__name__}: {error}", "a JSON Schema")


@check_for(ANY)
def options_refuse_unknown_keys_and_change(case: EntryCase) -> None:
    """The base's settings are kept: an unknown key is an error and instances are frozen."""
    if case.entry.kind == "command":
        return
    config = options_model(case.entry).model_config
    for key, wanted in (("extra", "forbid"), ("frozen", True), ("allow_inf_nan", False)):
        expect(config.get(key) == wanted, f"model_config[{key!r}]", repr(config.get(key)), repr(wanted))


@check_for(ANY)
def example_options_validate(case: EntryCase) -> None:
    """What `example` gives is accepted by the options model as a recipe's options are: as JSON, strictly, with the
    defaults of what it leaves out. A default of the type `Path` is none that JSON can hold: write a text."""
    if case.entry.kind == "command":
        return
    model = options_model(case.entry)
    example = filled(case.entry.example, case.folder)
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    if not example and required:
        return  # checks that build are skipped and say so
    try:
        model.model_validate_json(json.dumps(example, default=str), strict=True)
    except ValueError as error:
        fail(f"{model.__name__}.model_validate_json({example})", error, "options and defaults that are accepted")


@check_for(ANY)
def builds_without_global_randomness(case: EntryCase) -> None:
    """Building leaves Python's and NumPy's global random state as it was: randomness comes from context.generator."""
    if case.entry.kind == "command":
        return
    import random

    case.build()  # a builder may import, and imports may draw
    python, numpy = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    built = case.build()
    expect(built is not None, case.called, "None", "what the protocol of its kind asks for")
    expect(random.getstate() == python, case.called, "random's state changed", "context.generator(...) instead")
    same = bool(np.array_equal(np.random.get_state()[1], numpy))  # type: ignore[index]
    expect(same, case.called, "numpy.random's state changed", "context.generator(...) instead")


def _function_of(entry: Exporter, field: str) -> Callable[..., Any]:
    """The function that a field of an entry names."""
    named = getattr(entry, field)
    module, _, name = named.partition(":")
    function: Callable[..., Any] | None = getattr(import_module(module), name, None)
    expect(callable(function), f"entry.{field}", named, "package.module:function of a function")
    assert function is not None
    return function


@check_for("exporter")
def gets_back_resolves(case: EntryCase) -> None:
    """`gets_back` names a function, where an exporter has it, and no reference to nothing means a run."""
    assert isinstance(case.entry, Exporter)
    if not case.entry.gets_back:
        raise CheckSkipped("the exporter keeps no runs")
    function = _function_of(case.entry, "gets_back")
    with suppress(FinetoothError):
        fail("gets_back('no-such-run@v0')", function("no-such-run@v0"), "an error: nothing is kept under this name")


@check_for("exporter")
def admits_resolves(case: EntryCase) -> None:
    """`admits` names a function, where an exporter has it."""
    assert isinstance(case.entry, Exporter)
    if not case.entry.admits:
        raise CheckSkipped("the exporter takes everything")
    _function_of(case.entry, "admits")


@check_for("command")
def command_is_click_and_helps(case: EntryCase) -> None:
    """`build` names a click command whose `--help` works without a recipe."""
    import click
    from click.testing import CliRunner

    command = builder(case.entry)
    expect_instance(command, click.Command, case.entry.build)
    assert isinstance(command, click.Command)
    result = CliRunner().invoke(command, ["--help"])
    expect(result.exit_code == 0, f"{case.entry.name} --help", f"exit code {result.exit_code}", "0")
    expect(command.help, f"{case.entry.build}.help", repr(command.help), "a docstring that `--help` shows")
