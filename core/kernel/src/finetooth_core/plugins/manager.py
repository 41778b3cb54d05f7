"""The plugin manager: finds plugins, imports each one guarded, checks its hooks and fills the catalog, once at start.

A plugin is an installed distribution with an entry point in group `finetooth`, a local `.py` file, or a module the user
names. A broken plugin is left out with a warning. It stops the command only if the user named it, or if the recipe
picks one of its entries (then the catalog raises the error).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from finetooth_hooks import CONTRACT_VERSION, PluginError, changes, install_command
from finetooth_toolbox import blame
from finetooth_toolbox.files.listed_path import listed_path
from finetooth_toolbox.text.nearest import PLUGIN_PREFIX, nearest
from pluggy import PluginManager

from finetooth_core.plugins import local_files, registration, versions
from finetooth_core.plugins.catalog import Catalog, Registered
from finetooth_core.plugins.distributions import Installed, discover
from finetooth_core.plugins.faults import Fault
from finetooth_core.plugins.loaded_plugin import Loaded
from finetooth_core.plugins.references import PluginRef, Reference, resolve
from finetooth_core.plugins.registration import Hook, Problem, Registration

CONTRACT = "finetooth-hooks"
PRODUCT = "finetooth"
"""The distribution whose version is the contract's."""

_ASK_AUTHOR = "report it to the plugin's author, or leave it out with -p no:{}"


@dataclass(frozen=True)
class EventPlugin:
    """A plugin in use, as the run loop calls it.

    Attributes:
        name: as in `Loaded.distribution`.
        module: the plugin's module.
        named_by_user: an exception in one of its event hooks fails the run.
        hooks: its event hooks by name; empty for a plugin with only entries.
        given: the options the user gave, or None.
    """

    name: str
    module: ModuleType
    named_by_user: bool
    hooks: Mapping[str, Hook]
    given: Mapping[str, Any] | None = None

    def check_options(self) -> None:
        """Checks the options that the user gave the plugin.

        Raises:
            PluginError: the user's options are wrong, or required ones are missing.
        """
        from finetooth_core.plugins.plugin_options import validate

        validate(self.name, self.module, self.given)

    @cached_property
    def options(self) -> Any:
        """The plugin's options: an instance of its `plugin_options` model, None if it has none.

        Raises:
            PluginError: the user's options are wrong, or required ones are missing.
        """
        from finetooth_core.plugins.plugin_options import validate

        return validate(self.name, self.module, self.given)

    def call(self, hook: str, **arguments: Any) -> Any:
        """Call an event hook with those of `arguments` that it takes, and return its result; does nothing if the plugin
        lacks the hook."""
        function = self.hooks.get(hook)
        return None if function is None else function(**arguments)


@dataclass(frozen=True)
class Plugins:
    """All plugins of a process.

    Attributes:
        catalog: their entries.
        faults: faults of plugins that were left out.
        loaded: those in use, sorted by name.
        events: those with event hooks or with options, sorted by name.
        installed: every distribution found, broken ones included.
        blocked: distributions the user blocked.
        files: what the user named; with `base` and `blocked` it starts the same plugins in another process.
        base: folder that local files are relative to.
    """

    catalog: Catalog
    faults: tuple[Fault, ...]
    loaded: tuple[Loaded, ...]
    events: tuple[EventPlugin, ...]
    installed: tuple[Installed, ...] = ()
    blocked: tuple[str, ...] = ()
    files: tuple[str | Mapping[str, Any], ...] = ()
    base: Path | None = None

    @property
    def versions(self) -> Mapping[str, str]:
        """Version of every plugin in use, by name, for manifests; `sha256:...` for a local file."""
        return {p.distribution: f"sha256:{p.sha256}" if p.sha256 else p.version for p in self.loaded}


def start(
    *,
    files: Sequence[str | Mapping[str, Any]] = (),
    blocked: Sequence[str] = (),
    base: Path | None = None,
    strict: bool = True,
) -> Plugins:
    """Find, import and register all plugins.

    Args:
        files: plugins that the user named, in `plugins:`, `--plugins` or `FT_PLUGINS`: local files, modules,
            distributions with a version requirement, or mappings `{use: ..., options: {...}}`.
        blocked: distributions that must not even be imported (`-p no:DIST`).
        base: folder that local files are relative to; default is the current one.
        strict: False reports a fault of a plugin the user named like any other, for `ft plugins doctor`.

    Raises:
        PluginError: a plugin the user named is missing or broken, its options are wrong, or a blocked one is not
            installed.
    """
    manager = _Manager(base or Path.cwd(), frozenset(versions.canonical(name) for name in blocked))
    manager.check_blocked()
    named = resolve([Reference.parse(item) for item in files], manager.installed, manager.base)
    with listed_path():
        for installed in manager.installed:
            if installed.distribution not in manager.blocked:
                manager.add_installed(installed, named.get(installed.distribution))
    for reference in named.values():
        manager.add_named(reference)
    manager.hooks.check_pending()
    plugins = replace(manager.plugins(), files=tuple(files), base=manager.base)
    blame.remember(plugins.loaded)
    if strict:
        _raise_named(plugins.faults, named)
    for plugin in plugins.events:
        if plugin.given is not None:
            plugin.check_options()  # now, not when the first event fires
    return plugins


def _raise_named(faults: Sequence[Fault], named: Mapping[str, PluginRef]) -> None:
    """Raise for the faults of plugins the user named, all of them in one error."""
    fatal = [fault for fault in faults if fault.distribution in named]
    if len(fatal) > 1:
        raise PluginError("", "\n".join(fault.line() for fault in fatal))
    for fault in fatal:
        problem = f"{fault.problem} [{fault.file}]" if fault.file else fault.problem
        raise PluginError(fault.label, problem, action=fault.action)


@dataclass
class _Manager:
    """Collects entries, hooks and faults while plugins are read."""

    base: Path
    blocked: frozenset[str]
    installed: tuple[Installed, ...] = field(default_factory=discover)
    faults: list[Fault] = field(default_factory=list)
    loaded: list[Loaded] = field(default_factory=list)
    events: list[EventPlugin] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    hooks: PluginManager = field(default_factory=registration.new_manager)

    def check_blocked(self) -> None:
        """Check the blocked names: a misspelt one would load a plugin that the user wants to block.

        Raises:
            PluginError: a blocked distribution is not installed.
        """
        names = {installed.distribution for installed in self.installed}
        for name in sorted(self.blocked - names):
            near = nearest(name, names, prefix=PLUGIN_PREFIX)
            action = f"did you mean no:{near}?" if near else "see ft plugins list"
            raise PluginError("", f"-p no:{name}: no installed plugin has this name", action=action)

    def add_installed(self, installed: Installed, named: PluginRef | None) -> None:
        """Import and register the modules of one distribution."""
        name, version = installed.distribution, installed.version
        problem = _entry_point_problem(installed) or _contract_problem(installed)
        if problem is not None:
            self._fault(name, version, problem)
            return
        module = self._import(installed.references[0][1], name, version)
        if module is not None:
            self._register(name, version, module, named)

    def add_named(self, named: PluginRef) -> None:
        """Import and register a local file or a module the user named; check a distribution the user named."""
        name = named.name
        if named.problem is not None:
            self._fault(name, "", named.problem)
        elif named.name in self.blocked:
            self._fault(name, "", Problem("it is named and blocked", f"leave out -p no:{name}, or do not name it"))
        elif named.is_file:
            self._add_file(named)
        elif named.is_module:
            module = self._import(name, name, "")
            if module is not None:
                self._register(name, "", module, named)

    def _import(self, reference: str, name: str, version: str) -> ModuleType | None:
        try:
            return import_module(reference)
        except (Exception, SystemExit) as error:
            self._fault(name, version, _import_problem(error, reference, name))
            return None

    def _add_file(self, named: PluginRef) -> None:
        try:
            file = local_files.read(named.reference.use, self.base)
        except OSError as error:
            moved = Path(named.reference.use).is_absolute()
            action = "name its new path with --plugins" if moved else "check the path, relative to this folder"
            self._fault(named.name, "", Problem(f"cannot be read: {error.strerror or error}", action, str(self.base)))
            return
        try:
            module = local_files.load(file)
        except (Exception, SystemExit) as error:
            self._fault(named.name, "", _import_problem(error, "", named.name, str(file.path)))
        else:
            self._register(named.name, "", module, named, file.sha256)

    def _register(self, name: str, version: str, module: ModuleType, named: PluginRef | None, sha256: str = "") -> None:
        file = getattr(module, "__file__", None) or ""
        if module.__name__ in self.modules:
            text = f"its module {module.__name__} is already in use by {self.modules[module.__name__]}"
            self._fault(name, version, Problem(text, f"uninstall one of the two, or use -p no:{name}", file))
            return
        brought = registration.read(module, self.hooks)
        problems = list(brought.problems)
        options = named.reference.options if named is not None else None
        if named is not None and not brought.hooks and not hasattr(module, "plugin_options"):
            problems.append(
                Problem("it has no hook", "add a function such as ft_losses or ft_step under @hookimpl", file)
            )
        if problems:
            self._faults(name, version, problems, brought, file)
            return
        self.modules[module.__name__] = name
        entries = tuple(Registered(e, name, version, module.__name__, file) for e in brought.entries)
        self.loaded.append(Loaded(name, version, module.__name__, file, entries, sha256, named is not None))
        if brought.events or hasattr(module, "plugin_options") or options is not None:
            self.events.append(EventPlugin(name, module, named is not None, brought.events, options))

    def _fault(self, name: str, version: str, problem: Problem) -> None:
        self.faults.append(Fault(name, version, problem.where, problem.text, problem.action))

    def _faults(self, name: str, version: str, problems: list[Problem], registration: Registration, file: str) -> None:
        offers = tuple(f"{entry.kind}:{entry.name}" for entry in registration.entries)
        for problem in problems:
            self.faults.append(Fault(name, version, problem.where or file, problem.text, problem.action, offers))

    def plugins(self) -> Plugins:
        """The collected plugins."""
        entries = [entry for plugin in self.loaded for entry in plugin.entries]
        return Plugins(
            Catalog(entries, self.faults, tuple(self.blocked)),
            tuple(self.faults),
            tuple(sorted(self.loaded, key=lambda plugin: (plugin.distribution, plugin.module))),
            tuple(sorted(self.events, key=lambda plugin: (plugin.name, plugin.module.__name__))),
            self.installed,
            tuple(sorted(self.blocked)),
        )


def _entry_point_problem(installed: Installed) -> Problem | None:
    """Check that a distribution is one plugin, with an entry point that names its module."""
    references = [reference for _, reference in installed.references]
    if len(references) > 1:
        text = f"it has {len(references)} entry points ({', '.join(references)}), and a plugin has one"
    elif ":" in references[0]:
        text = f"its entry point {references[0]!r} names an attribute, and must name a module"
    else:
        return None
    return Problem(text, _ASK_AUTHOR.format(installed.distribution), str(installed.folder / "entry_points.txt"))


def _contract_problem(installed: Installed) -> Problem | None:
    """Check the contract before the import, since a plugin for another contract may fail with unclear errors."""
    for requirement in versions.on(CONTRACT, installed.requires):
        if not versions.admits(requirement.specifier, CONTRACT_VERSION):
            plugin = _source_of(installed.references[0][1])
            texts = (path.read_text("utf-8", "replace") for path in sorted(Path(plugin).parent.rglob("*.py")) if plugin)
            older = [number for number in changes.numbers() if versions.admits(requirement.specifier, number)]
            changed = "; ".join(filter(None, (changes.met(texts, older), "it was not imported")))
            upgrade = installed.distribution if older else PRODUCT
            return Problem(
                f"it needs {requirement.text}, and {CONTRACT} {CONTRACT_VERSION} is installed; {changed}",
                f"{changes.PAGE} has every change; {install_command(upgrade, option='--upgrade')}",
                str(installed.folder / "METADATA"),
            )
    return None


def _import_problem(error: BaseException, module: str, name: str, file: str = "") -> Problem:
    """The problem of a failed import of a plugin, with the remedy."""
    text = f"it cannot be imported: {blame.describe(error)}"
    where = blame.origin(error, file) or file or _source_of(module)
    own = isinstance(error, ImportError) and (error.name or "").partition(".")[0] == module.partition(".")[0]
    lacks, action = versions.remedy(error, name) if isinstance(error, ImportError) and not own else ("", "")
    return Problem(text + lacks, action or _ASK_AUTHOR.format(name), where)


def _source_of(module: str) -> str:
    """File of a module that could not be imported, if it can be found without importing it."""
    top, _, rest = module.partition(".")
    for place in sys.path:
        folder = Path(place or ".", top)
        for file in (folder.joinpath(*rest.split(".")).with_suffix(".py"), folder / "__init__.py"):
            if rest and file.is_file():
                return str(file)
    return ""
