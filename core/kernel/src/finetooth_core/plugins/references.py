"""References to plugins in `plugins:` of a recipe, `--plugins` or `FT_PLUGINS`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks import PluginError, install_command
from finetooth_toolbox.text.nearest import PLUGIN_PREFIX, nearest

from finetooth_core.plugins import local_files, versions
from finetooth_core.plugins.distributions import Installed
from finetooth_core.plugins.registration import Problem

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*$")
_KEYS = ("use", "options")


@dataclass(frozen=True)
class Reference:
    """One item of `plugins:`.

    Attributes:
        use: a local file, a module, or a distribution with an optional version requirement.
        options: the plugin's options, None if the user gave none.
    """

    use: str
    options: Mapping[str, Any] | None = None

    @classmethod
    def parse(cls, item: str | Mapping[str, Any]) -> Reference:
        """Reads an item of the recipe's `plugins`.

        Raises:
            PluginError: the item is neither a text nor `{use: ..., options: {...}}`.
        """
        form = "write a text, or {use: REFERENCE, options: {...}}"
        use, options = item, None
        if isinstance(item, Mapping):
            unknown = sorted(str(key) for key in item if key not in _KEYS)
            if unknown:
                raise PluginError("", f"plugins: unknown key {unknown[0]!r} in {dict(item)!r}", action=form)
            use, options = item.get("use", ""), item.get("options")
        if not isinstance(use, str) or not use.strip():
            raise PluginError("", f"plugins: {item!r} names no plugin", action=form)
        if options is not None and not isinstance(options, Mapping):
            raise PluginError(use, f"its options are {options!r}, not a mapping", action=form)
        return cls(use.strip(), options)


@dataclass(frozen=True)
class PluginRef:
    """A resolved reference.

    Attributes:
        name: of the plugin: distribution, module, or the path of a file relative to the recipe.
        reference: what the user wrote.
        is_file: it is a local file.
        is_module: it is a module that is not the plugin of an installed distribution.
        problem: the reason why it cannot be used; None if no problem is known yet.
    """

    name: str
    reference: Reference
    is_file: bool = False
    is_module: bool = False
    problem: Problem | None = None


def resolve(references: Iterable[Reference], installed: Sequence[Installed], base: Path) -> dict[str, PluginRef]:
    """References by the name of their plugin; one with options wins over one without.

    Args:
        base: folder that local files are relative to.

    Raises:
        PluginError: one plugin is given two different sets of options.
    """
    by_name: dict[str, PluginRef] = {}
    for reference in references:
        named = _resolve(reference, installed, base)
        before = by_name.get(named.name)
        if before is not None:
            options = before.reference.options
            if options is not None and reference.options is not None and options != reference.options:
                raise PluginError(named.name, "it is named twice with different options", action="name it once")
            if before.problem is not None or (named.problem is None and reference.options is None):
                continue
        by_name[named.name] = named
    return by_name


def choose(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """The plugins with these names; all if `names` is empty.

    Raises:
        PluginError: no plugin has one of the names.
    """
    chosen = []
    for name in names:
        file = local_files.display_name(name, Path.cwd()) if local_files.is_file_reference(name) else name
        same = (known_name for known_name in known if versions.canonical(known_name) == versions.canonical(name))
        match = file if file in known else next(same, None)
        if match is None:
            near = nearest(versions.canonical(name), known, prefix=PLUGIN_PREFIX)
            action = f"did you mean {near}?" if near else "see ft plugins list"
            raise PluginError("", f"{name!r} is not an installed plugin", action=action)
        chosen.append(match)
    return chosen or list(known)


def _resolve(reference: Reference, installed: Sequence[Installed], base: Path) -> PluginRef:
    use = reference.use
    if local_files.is_file_reference(use):
        problem = None if use.endswith(".py") else Problem("it is not a .py file", "name one: ./FILE.py")
        return PluginRef(local_files.display_name(use, base), reference, is_file=True, problem=problem)
    for distribution in installed:
        if any(use == value for _, value in distribution.references):
            return PluginRef(distribution.distribution, reference)
    requirement = versions.parse(use)
    if requirement is None:
        return PluginRef(
            use, reference, problem=Problem("it is not a file, module or requirement", "write ./FILE.py or NAME>=1")
        )
    for distribution in installed:
        if distribution.distribution == requirement.name:
            return PluginRef(requirement.name, reference, problem=_version_problem(requirement, distribution))
    if not requirement.specifier and _MODULE.match(use) and _importable(use):
        return PluginRef(use, reference, is_module=True)
    problem = Problem(
        "no installed plugin or module has this name",
        f"install it: {install_command(requirement.text)}; a file is named as ./FILE.py",
    )
    return PluginRef(requirement.name, reference, problem=problem)


def _version_problem(requirement: versions.Requirement, installed: Installed) -> Problem | None:
    if versions.admits(requirement.specifier, installed.version):
        return None
    text = f"version {installed.version} is installed, and {requirement.text} is asked for"
    return Problem(text, install_command(requirement.text), str(installed.folder))


def _importable(module: str) -> bool:
    """Whether the top-level package of a module exists; does not run the module."""
    from importlib.util import find_spec

    try:
        return find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
