"""From plugin modules to the checks that concern them."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from finetooth_hooks import specs
from finetooth_hooks.entries import Entry
from finetooth_hooks.markers import implementation
from finetooth_toolbox.text.nearest import nearest

from finetooth_kit.checks import Check, CheckResult, checks_for, entry_check, expect, fail, run_check

Subject = str | ModuleType | Entry
"""A plugin module by name, the module itself, or an entry."""

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "pydantic",
    "mlx",
    "peft",
    "trl",
    "accelerate",
    "pandas",
    "scipy",
    "jax",
    "tensorflow",
    "rich",
    "yaml",
)
"""What a plugin's own module must not import: it is loaded at every start."""


def _hook_functions(module: ModuleType) -> dict[str, Any]:
    """Functions by the hook they are for: those named `ft_*` that are not an imported package, and those whose
    decorator names one (`@hookimpl(specname=...)`)."""
    functions: dict[str, Any] = {}
    for name, value in vars(module).items():
        marked = implementation(value)
        named = marked["specname"] if marked is not None else None
        if named or (name.startswith("ft_") and not isinstance(value, ModuleType)):
            functions[named or name] = value
    return functions


def _yielded(module: ModuleType) -> list[tuple[str, Any]]:
    """What the registration hooks of a module yield, with the name of the hook."""
    pairs: list[tuple[str, Any]] = []
    for name, function in _hook_functions(module).items():
        if name in specs.REGISTRATION_HOOKS and implementation(function) is not None:
            pairs += [(name, value) for value in function() or ()]
    return pairs


def _module(subject: str | ModuleType) -> ModuleType:
    return import_module(subject) if isinstance(subject, str) else subject


def entries_of(subject: Subject) -> tuple[Entry, ...]:
    """The entries a plugin module yields."""
    if isinstance(subject, Entry):
        return (subject,)
    return tuple(value for _, value in _yielded(_module(subject)) if isinstance(value, Entry))


# --- checks of a whole module -----------------------------------------------------------------------------------------


def hooks_exist_and_are_marked(subject: str | ModuleType) -> None:
    """Every `ft_*` function is a hook of the contract, carries `@hookimpl` and takes only arguments the hook gives."""
    module = _module(subject)
    known = {name for name in vars(specs) if name.startswith("ft_")}
    for name, function in _hook_functions(module).items():
        marked = implementation(function)
        called = f"{module.__name__}.{name}"
        if marked is None:
            fail(called, "a function without @hookimpl", "@hookimpl above it, or another name")
        if name not in known:
            near = nearest(name, known, prefix="ft_")
            hint = f"one of the contract's hooks, perhaps {near}" if near else "one of the contract's hooks"
            expect(marked["optionalhook"], called, "a hook that does not exist", hint)
            continue
        taken = inspect.signature(getattr(specs, name)).parameters
        for parameter in inspect.signature(function).parameters:
            expect(parameter in taken, called, f"an argument {parameter!r}", f"of {tuple(taken)} those it needs")


def yields_entries_of_the_right_type(subject: str | ModuleType) -> None:
    """Each registration hook yields frozen entries of its own kind."""
    module = _module(subject)
    for name, value in _yielded(module):
        wanted = specs.REGISTRATION_HOOKS[name]
        called = f"{module.__name__}.{name}()"
        expect(
            isinstance(value, wanted),
            called,
            f"a {type(value).__name__}: {value!r}"[:200],
            f"a {wanted.__name__} entry",
        )
        frozen = getattr(getattr(type(value), "__dataclass_params__", None), "frozen", False)
        expect(frozen, called, f"a {type(value).__name__} that can be changed", "a frozen dataclass")


def names_are_unique(subject: str | ModuleType) -> None:
    """No two entries of one kind share a name."""
    seen: set[tuple[str, str]] = set()
    for entry in entries_of(subject):
        key = (entry.kind, entry.name)
        expect(key not in seen, f"hooks of {_module(subject).__name__}", f"two of {entry.kind} {entry.name!r}", "one")
        seen.add(key)


def imports_nothing_heavy(subject: str | ModuleType) -> None:
    """A fresh process that imports the module and calls its registration hooks has loaded no framework."""
    name = subject if isinstance(subject, str) else subject.__name__
    hooks = tuple(specs.REGISTRATION_HOOKS)
    program = (
        "import sys, json\n"
        f"sys.path[:] = {sys.path!r}\n"
        "from importlib import import_module\n"
        f"module = import_module({name!r})\n"
        f"for hook in {hooks!r}:\n"
        "    if hook in vars(module) and callable(vars(module)[hook]):\n"
        "        list(vars(module)[hook]() or ())\n"
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    called = f"import {name} in a fresh process"
    if done.returncode != 0:
        fail(called, done.stderr.strip().splitlines()[-1:], "an import without error")
    heavy = json.loads(done.stdout.strip().splitlines()[-1])
    expect(not heavy, called, f"loaded {', '.join(heavy)}", "heavy imports only in the modules that builders live in")


_MODULE_CHECKS = (
    hooks_exist_and_are_marked,
    yields_entries_of_the_right_type,
    names_are_unique,
    imports_nothing_heavy,
)


# --- collecting -------------------------------------------------------------------------------------------------------


def _import_check(name: str, error: Exception) -> Check:
    def imports() -> None:
        fail(f"import {name}", f"{type(error).__name__}: {error}", "a module that imports and whose hooks run")

    return Check(f"plugin:{name}", "imports", imports)


def collect(
    *subjects: Subject, expected_failures: Mapping[str, str] | None = None, installed: bool = False
) -> list[Check]:
    """All checks that concern the subjects.

    Args:
        subjects: plugin modules (by name or as modules) or entries.
        expected_failures: reason by check: its name, or its full id `loss:dpo-NAME`. A check that is expected to
            fail and passes counts as failed, so that the list cannot rot. They join those that entries declare.
        installed: builders may pick entries of other installed plugins.

    Raises:
        ValueError: an expected failure names no check, or gives no reason.
    """
    from finetooth_kit import registered  # noqa: F401  (fills the register)

    checks: list[Check] = []
    loose: list[Entry] = [subject for subject in subjects if isinstance(subject, Entry)]
    for subject in subjects:
        if isinstance(subject, Entry):
            continue
        name = subject if isinstance(subject, str) else subject.__name__
        try:
            entries = entries_of(subject)
        except Exception as error:
            checks.append(_import_check(name, error))
            continue
        for function in _MODULE_CHECKS:
            checks.append(Check(f"plugin:{name}", function.__name__, partial(function, subject)))
        checks += _entry_checks(entries, installed)
    checks += _entry_checks(tuple(loose), installed)
    return expecting(checks, expected_failures or {})


def _entry_checks(entries: tuple[Entry, ...], installed: bool) -> list[Check]:
    collected: list[Check] = []
    for entry in entries:
        checks = [entry_check(function, entry, entries, installed) for function in checks_for(entry.kind)]
        try:
            collected += expecting(checks, entry.expected_failures)
        except ValueError as error:
            collected += [*checks, _declaration_check(entry, str(error))]
    return collected


def _declaration_check(entry: Entry, problem: str) -> Check:
    """A check that fails: the entry expects failures of something that is not a check, or gives no reason."""

    def expected_failures_name_checks() -> None:
        fail("entry.expected_failures", problem, "names of checks of the kit, each with a reason")

    return Check(f"{entry.kind}:{entry.name}", expected_failures_name_checks.__name__, expected_failures_name_checks)


def expecting(checks: list[Check], expected: Mapping[str, str]) -> list[Check]:
    """The checks, those that are expected to fail with the reason.

    Raises:
        ValueError: a key names no check, or gives no reason.
    """
    known = {check.id for check in checks} | {check.name for check in checks}
    for key, reason in expected.items():
        if key not in known:
            near = nearest(key, known)
            raise ValueError(f"expected_failures names no check: {key!r}" + (f"; near: {near!r}" if near else ""))
        if not reason.strip():
            raise ValueError(f"expected_failures[{key!r}] gives no reason")
    return [
        replace(check, expected_failure=expected.get(check.id, expected.get(check.name, check.expected_failure)))
        for check in checks
    ]


def run_checks(
    *subjects: Subject, expected_failures: Mapping[str, str] | None = None, installed: bool = False
) -> list[CheckResult]:
    """Collect and run, without pytest; see `collect` for the arguments."""
    return [run_check(check) for check in collect(*subjects, expected_failures=expected_failures, installed=installed)]


def failures(results: Iterable[CheckResult]) -> list[CheckResult]:
    """Those that failed."""
    return [result for result in results if result.status == "failed"]
