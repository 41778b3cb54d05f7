"""Reads a plugin module: checks its hooks, and the entries that they yield.

pluggy registers the module. Before that, the checks here report every mistake that would silently leave a hook
uncalled, with place and remedy: a misspelt name, a forgotten decorator, an argument that the hook does not have
(docs/decisions/0027).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import ModuleType
from typing import Any

import pluggy
from finetooth_hooks import Entry, specs
from finetooth_hooks.markers import PROJECT, implementation
from finetooth_toolbox.blame import describe, origin
from finetooth_toolbox.text.nearest import nearest

NAME = re.compile(r"[a-z][a-z0-9_-]*\Z")
"""Pattern of names of entries."""

REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*\Z")
"""`package.module:attribute`."""

PREFIX = "ft_"


@dataclass(frozen=True)
class Hook:
    """One implementation of a hook.

    Attributes:
        name: of the hookspec.
        implementation: as pluggy has registered it.
    """

    name: str
    implementation: pluggy.HookImpl

    @property
    def function(self) -> Callable[..., Any]:
        """The plugin's function."""
        return self.implementation.function

    def __call__(self, **given: Any) -> Any:
        """Call only this plugin's hook, with those of the arguments that it takes."""
        return self.function(**{name: given[name] for name in self.implementation.argnames})


@dataclass(frozen=True)
class Problem:
    """A problem with its place (`file:line` if known) and remedy."""

    text: str
    action: str
    where: str = ""


@dataclass(frozen=True)
class Registration:
    """The content of a plugin module.

    Attributes:
        hooks: implementations, in the order of the hookspecs.
        entries: all entries from its registration hooks.
        problems: its problems; with any, the plugin must not be used.
    """

    hooks: tuple[Hook, ...]
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]

    @property
    def events(self) -> Mapping[str, Hook]:
        """Implementations of event hooks, by name."""
        return {hook.name: hook for hook in self.hooks if hook.name in specs.EVENT_HOOKS}


@cache
def hook_arguments() -> Mapping[str, tuple[str, ...]]:
    """Every hookspec and its arguments."""
    names = (*specs.REGISTRATION_HOOKS, *specs.EVENT_HOOKS)
    return {name: tuple(inspect.signature(getattr(specs, name)).parameters) for name in names}


class _Manager(pluggy.PluginManager):
    """Finds implementations as `_check_hooks` does; pluggy's own search takes a twentieth of the start."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        return implementation(getattr(plugin, name, None))


def new_manager() -> pluggy.PluginManager:
    """A manager with the hooks of the contract."""
    manager = _Manager(PROJECT)
    manager.add_hookspecs(specs)
    return manager


def read(module: ModuleType, manager: pluggy.PluginManager | None = None) -> Registration:
    """Check the hooks of a plugin module, register it, call its registration hooks once each, and check their entries.

    Args:
        manager: the manager for the registration; default: a new one.
    """
    sound, problems = _check_hooks(module)
    manager = manager or new_manager()
    if problems:  # the plugin will not be used, and messages name its entries
        made = {name: pluggy.HookImpl(module, module.__name__, *options) for name, options in sound.items()}
    else:
        manager.register(module)
        hooks_of = {name: getattr(manager.hook, name).get_hookimpls() for name in sound}
        made = {name: impl for name, impls in hooks_of.items() for impl in impls if impl.plugin is module}
    hooks = [Hook(name, made[name]) for name in hook_arguments() if name in made]
    entries: list[Entry] = []
    for hook in hooks:
        if hook.name in specs.REGISTRATION_HOOKS:
            yielded, wrong = _collect(hook)
            entries.extend(yielded)
            problems.extend(wrong)
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if (entry.kind, entry.name) in seen:
            problems.append(Problem(f"it yields {entry.kind} {entry.name!r} twice", "give each entry its own name"))
        seen.add((entry.kind, entry.name))
    if problems and manager.is_registered(module):
        manager.unregister(module)
    return Registration(tuple(hooks), tuple(entries), tuple(problems))


# --- hooks ------------------------------------------------------------------------------------------------------------


def _check_hooks(
    module: ModuleType,
) -> tuple[dict[str, tuple[Callable[..., Any], pluggy.HookimplOpts]], list[Problem]]:
    """The correct hooks of a module by name, and the problems of the others."""
    sound: dict[str, tuple[Callable[..., Any], pluggy.HookimplOpts]] = {}
    problems: list[Problem] = []
    for attribute, value in list(vars(module).items()):
        marked = implementation(value)
        if marked is not None:
            name = marked["specname"] or attribute
            problem = _check_decorated(name, value, marked)
        elif attribute.startswith(PREFIX) and not isinstance(value, ModuleType):
            name, problem = attribute, _check_undecorated(attribute, value)
        else:
            continue
        if problem is None and name in sound:
            problem = Problem(f"it implements {name} twice", "keep one of the two", _position(value))
        if problem is not None:
            problems.append(problem)
        elif marked is not None:
            sound[name] = value, marked
    return sound, problems


def _check_decorated(name: str, function: Callable[..., Any], marked: pluggy.HookimplOpts) -> Problem | None:
    where = _position(function)
    if name not in hook_arguments():
        if marked["optionalhook"]:
            return None
        return Problem(f"{name} is not a hook{_nearest(name)}", _rename_action(name), where)
    for option, value in marked.items():
        if value and option not in ("specname", "optionalhook"):
            text = f"{name} is decorated with {option}={value}, which finetooth does not support"
            return Problem(f"{text}: it calls plugins one by one", f"remove {option}={value}", where)
    if name in specs.EVENT_HOOKS and (inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)):
        return Problem(f"{name} is a generator or coroutine, so it would never run", "make it a plain function", where)
    known = hook_arguments()[name]
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            return Problem(f"{name} takes {parameter.name!r}, which the hook does not have ({has})", "remove it", where)
        if parameter.default is not parameter.empty:
            return Problem(
                f"{name} gives its argument {parameter.name!r} a default, so it would never be passed",
                "remove the default",
                where,
            )
    return None


def _check_undecorated(name: str, value: object) -> Problem | None:
    where = _position(value)
    if name in hook_arguments():
        if not inspect.isfunction(value):
            return Problem(f"{name} is a {type(value).__name__}, not a function", "make it a @hookimpl function", where)
        return Problem(f"{name} lacks its decorator, so it is never called", "put @hookimpl above it", where)
    if not callable(value):
        return None
    return Problem(f"{name} is not a hook, and lacks the decorator{_nearest(name)}", _rename_action(name), where)


def _nearest(name: str) -> str:
    near = _close(name)
    return f"; the nearest is {near}" if near else ""


def _rename_action(name: str) -> str:
    near = _close(name)
    rename = f"rename it to {near}" if near else f"rename it so that it does not start with {PREFIX}"
    return f"{rename}, or opt out with @hookimpl(optionalhook=True)"


def _close(name: str) -> str:
    return nearest(name, hook_arguments(), prefix=PREFIX) or ""


# --- entries ----------------------------------------------------------------------------------------------------------


def _collect(hook: Hook) -> tuple[list[Entry], list[Problem]]:
    expected = specs.REGISTRATION_HOOKS[hook.name]
    where = _position(hook.function)
    needs = f"it must yield {expected.__name__} entries"
    entries: list[Entry] = []
    problems: list[Problem] = []
    try:
        for item in _items(hook()):
            problem = _check_entry(item, expected, hook.name)
            if problem:
                problems.append(Problem(problem, needs, where))
            else:
                entries.append(item)
    except _NotIterable as error:
        problems.append(Problem(f"{hook.name} returned {error}", needs, where))
    except (Exception, SystemExit) as error:
        problems.append(
            Problem(
                f"{hook.name} raised {describe(error)}",
                "report it to the plugin's author",
                origin(error, hook.function.__code__.co_filename) or where,
            )
        )
    return entries, problems


class _NotIterable(Exception):
    """The result of a registration hook is not an iterable of entries."""


def _items(returned: object) -> Iterator[Any]:
    if returned is None:
        raise _NotIterable("None")
    if isinstance(returned, Entry):
        raise _NotIterable(f"a single {type(returned).__name__}; it must yield it")
    if isinstance(returned, str | Mapping) or not isinstance(returned, Iterable):
        raise _NotIterable(f"a {type(returned).__name__}")
    yield from returned


def _check_entry(item: object, expected: type[Entry], hook: str) -> str:
    """The problem of an item from a registration hook; empty without one."""
    if not isinstance(item, Entry):
        shown = "None" if item is None else f"a {type(item).__name__}"
        return f"{hook} yields {shown}"
    if not isinstance(item, expected):
        right = next((name for name, cls in specs.REGISTRATION_HOOKS.items() if isinstance(item, cls)), "")
        belongs = f", which belongs in {right}" if right else ""
        return f"{hook} yields a {type(item).__name__} ({item.name!r}){belongs}"
    if not isinstance(item.name, str) or not NAME.match(item.name):
        return f"{hook} yields {item.name!r}, which is not an entry name (lower case letters, digits, '_' and '-')"
    if not isinstance(item.build, str) or not REFERENCE.match(item.build):
        return f"{item.kind} {item.name!r} names its builder {item.build!r}, which is not 'package.module:function'"
    for field in fields(item):
        value = getattr(item, field.name)
        if str(field.type).startswith("frozenset") and not (
            isinstance(value, frozenset | set) and all(isinstance(text, str) for text in value)
        ):
            return f"{item.kind} {item.name!r} has {field.name}={value!r}, which is not a set of strings"
    return ""


# --- where ------------------------------------------------------------------------------------------------------------


def _position(value: object) -> str:
    code = getattr(value, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""
