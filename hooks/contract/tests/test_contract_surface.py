"""The surface is a list; hooks, entries and kinds belong together; every hook has an example that compiles."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import textwrap
import typing
from pathlib import Path

import finetooth_hooks
import finetooth_kit as testing
import pytest
from finetooth_hooks import ENTRY_TYPES, Entry, entries, protocols, specs
from finetooth_hooks.markers import PROJECT


def test_all_is_sorted_and_complete() -> None:
    listed = finetooth_hooks.__all__
    assert list(listed) == sorted(listed)
    assert len(set(listed)) == len(listed)
    assert set(listed) == {*finetooth_hooks._MODULES, "CONTRACT_VERSION"}
    for name in listed:
        assert getattr(finetooth_hooks, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        finetooth_hooks.no_such_name  # noqa: B018


def test_kit_lists_what_it_offers() -> None:
    assert testing.__all__ == sorted(testing.__all__)
    for name in testing.__all__:
        assert getattr(testing, name).__doc__, name


def test_importing_the_package_is_light() -> None:
    heavy = ("numpy", "pydantic", "torch", "transformers", "mlx", "pytest")
    program = f"import sys, finetooth_hooks, finetooth_hooks.specs; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HOOKS = {name: value for name, value in vars(specs).items() if name.startswith("ft_")}


def test_hooks_are_registration_or_event_hooks() -> None:
    assert set(HOOKS) == {*specs.REGISTRATION_HOOKS, *specs.EVENT_HOOKS}
    assert all(hasattr(function, f"{PROJECT}_spec") for function in HOOKS.values())


def test_each_kind_has_its_hook_and_entry() -> None:
    assert set(specs.REGISTRATION_HOOKS.values()) == set(ENTRY_TYPES.values())
    for kind, cls in ENTRY_TYPES.items():
        assert cls.kind == kind and kind.replace("_", "") == cls.__name__.lower()
        plurals = {
            "loss": "losses",
            "family": "families",
            "strategy": "strategies",
            "hardware": "hardware",
            "attention": "attention",
        }
        hook = f"ft_{plurals.get(kind, f'{kind}s')}"
        assert specs.REGISTRATION_HOOKS[hook] is cls
    subclasses = {cls for cls in vars(entries).values() if inspect.isclass(cls) and issubclass(cls, Entry)}
    assert subclasses - {Entry} == set(ENTRY_TYPES.values())


def test_what_builders_return_has_a_protocol() -> None:
    for kind, cls in ENTRY_TYPES.items():
        if kind not in ("loss", "command"):
            assert inspect.isclass(getattr(protocols, cls.__name__)), kind


@pytest.mark.parametrize("name", HOOKS)
def test_hook_has_a_typed_signature_and_an_example_that_compiles(name: str) -> None:
    function = HOOKS[name]
    doc = inspect.getdoc(function) or ""
    summary, _, example = doc.partition("Example:\n")
    assert summary.strip().endswith("."), "a first line that says what the hook is for"
    assert "@hookimpl" in example
    tree = compile(textwrap.dedent(example), f"<example of {name}>", "exec")
    assert name in tree.co_names
    source_types = inspect.signature(function)
    assert source_types.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in source_types.parameters.values())
    if name in specs.REGISTRATION_HOOKS:
        hint = typing.get_type_hints(function, vars(specs))["return"]
        assert typing.get_args(hint) == (specs.REGISTRATION_HOOKS[name],)


@pytest.mark.parametrize("kind", [kind for kind in ENTRY_TYPES if kind != "command"])
def test_example_of_a_registration_hook_yields_its_entry(kind: str) -> None:
    (name,) = [hook for hook, cls in specs.REGISTRATION_HOOKS.items() if cls is ENTRY_TYPES[kind]]
    example = (inspect.getdoc(HOOKS[name]) or "").partition("Example:\n")[2]
    scope = {name: getattr(finetooth_hooks, name) for name in finetooth_hooks.__all__}
    exec(compile(textwrap.dedent(example), name, "exec"), scope)
    yielded = list(scope[name]())
    assert yielded and all(type(entry) is ENTRY_TYPES[kind] for entry in yielded)


def test_entries_are_frozen_and_documented() -> None:
    for cls in ENTRY_TYPES.values():
        assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert cls.__doc__
        required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
        assert set(required) <= {"name", "build", "claims", "framework", "capabilities", "here", "serves", "tier"}


def test_type_checkers_see_what_is_imported_on_first_use() -> None:
    """The stub imports each name from the module that the package's table gives, and nothing else."""
    stub = Path(finetooth_hooks.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    imports = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    seen = {str(alias.asname): f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    assert seen == {name: f"finetooth_hooks.{module}.{name}" for name, module in finetooth_hooks._MODULES.items()}


def test_entries_show_and_compare_all_their_fields() -> None:
    """As generated by dataclasses: the fields in their order, and entries of two kinds differ."""
    same = [finetooth_hooks.Reward(name="a", build="m:b", example={"x": 1}) for _ in range(2)]
    assert same[0] == same[1] != dataclasses.replace(same[0], concurrent=False)
    assert finetooth_hooks.Gate(name="a", build="m:b") != finetooth_hooks.Face(name="a", build="m:b")
    names = [f.name for f in dataclasses.fields(finetooth_hooks.Reward)]
    assert re.findall(r"(\w+)=", repr(same[0])) == names and repr(same[0]).startswith("Reward(name='a', build='m:b', ")
    with pytest.raises(TypeError, match="unhashable"):
        hash(same[0])
