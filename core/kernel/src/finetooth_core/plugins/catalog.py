"""The catalog: all entries by kind and name, each with its source. The only place that maps names to code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetooth_hooks import ENTRY_TYPES, Entry, Hardware, PluginError, install_command
from finetooth_hooks.entries import frameworks_of
from finetooth_recipes.names_elsewhere import absent
from finetooth_toolbox.blame import with_article
from finetooth_toolbox.text.nearest import form, nearest

from finetooth_core.plugins.faults import Fault
from finetooth_core.plugins.versions import canonical

INDEX = Path(__file__).parents[1] / "index.json"
"""The packages of the workspace by their entries; generated, see `tools/make_index.py`."""


@dataclass(frozen=True)
class Registered:
    """An entry with its source.

    Attributes:
        entry: as the plugin yielded it.
        distribution: name of the distribution, or the local file or module as the user named it.
        version: of the distribution; empty for a local file.
        module: the plugin's module.
        file: of the module.
    """

    entry: Entry
    distribution: str
    version: str
    module: str = ""
    file: str = ""

    @property
    def kind(self) -> str:
        """The entry's kind."""
        return self.entry.kind

    @property
    def full_name(self) -> str:
        """`DISTRIBUTION:NAME`."""
        return f"{self.distribution}:{self.entry.name}"


class Catalog:
    """Implements `finetooth_hooks.context.Catalog`.

    Args:
        entries: of all plugins in use.
        faults: of plugins that were left out; an error about an unknown name lists them if it may be theirs.
        blocked: distributions the user blocked.
        index: packages that have an entry, by kind and name; default is the generated index.
    """

    def __init__(
        self,
        entries: Iterable[Registered],
        faults: Sequence[Fault] = (),
        blocked: Sequence[str] = (),
        index: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    ) -> None:
        self.faults = tuple(faults)
        self.blocked = frozenset(canonical(name) for name in blocked)
        self._given_index = index
        self.missing: Mapping[str, str] = {}  # missing plugins of a run: version by name
        self._entries: dict[str, tuple[Registered, ...]] = {}
        ordered = sorted(entries, key=lambda r: (r.entry.name, r.distribution))
        for kind in ENTRY_TYPES:
            self._entries[kind] = tuple(registered for registered in ordered if registered.kind == kind)

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds of entries."""
        return tuple(self._entries)

    def all(self, kind: str) -> tuple[Registered, ...]:
        """Entries of a kind, sorted by name and distribution.

        Raises:
            ValueError: the kind is unknown.
        """
        if kind not in self._entries:
            raise ValueError(f"{kind!r} is not a kind of entry; kinds are {', '.join(self._entries)}")
        return self._entries[kind]

    def speaking(self, kind: str, framework: str) -> tuple[Registered, ...]:
        """Entries of a kind that a backend of a framework can use: entries for the framework, and entries without a
        framework.

        Args:
            framework: empty is any.
        """
        return tuple(r for r in self.all(kind) if not framework or framework in (frameworks_of(r.entry) or {framework}))

    def get(self, kind: str, name: str, *, setting: str = "", framework: str = "") -> Registered:
        """The entry called `name`: bare, or `DISTRIBUTION:NAME`.

        Args:
            framework: selects among several entries with this name; empty is any. A single entry is returned for any
                framework.

        Raises:
            PluginError: unknown (lists what is installed and which package would bring it), ambiguous, or its plugin
                is broken.
        """
        source, _, bare = name.rpartition(":")
        matches = [r for r in self.all(kind) if r.entry.name == bare and (not source or _same(r.distribution, source))]
        if len(matches) == 1:
            return matches[0]
        if not matches:
            raise self._unknown(kind, source, bare, setting)
        speaking = [registered for registered in matches if registered in self.speaking(kind, framework)]
        if len(speaking) == 1:
            return speaking[0]
        if not speaking:
            brought = " and ".join(f"{r.full_name} (for {', '.join(sorted(frameworks_of(r.entry)))})" for r in matches)
            raise PluginError(
                "",
                f"{_prefix(setting)}{kind} {bare!r} is brought by {brought}, and the backend is {framework}",
                action=f"pick another {kind} or backend",
            )
        matches = speaking
        names = " and ".join(f"{r.full_name} ({r.version or r.file})" for r in matches)
        raise PluginError(
            "",
            f"{_prefix(setting)}{kind} {bare!r} is brought by {names}",
            action=f"write one of {', '.join(r.full_name for r in matches)}",
        )

    def defaults(self, kind: str, framework: str = "") -> tuple[Registered, ...]:
        """Entries of a kind that are used if the recipe leaves the choice open."""
        return tuple(registered for registered in self.speaking(kind, framework) if registered.entry.default)

    def default(self, kind: str, *, setting: str = "", framework: str = "") -> Registered:
        """The single entry of a kind that is used if the recipe leaves the choice open.

        Args:
            framework: only entries for it are considered; empty is all.

        Raises:
            PluginError: no entry or several are marked as the default.
        """
        defaults = self.defaults(kind, framework)
        if len(defaults) == 1:
            return defaults[0]
        if defaults:
            problem = f"several {kind} entries say they are the default: {', '.join(r.full_name for r in defaults)}"
        elif framework and self.defaults(kind):
            others = ", ".join(
                f"{r.full_name} for {', '.join(sorted(frameworks_of(r.entry)))}" for r in self.defaults(kind)
            )
            problem = f"no {kind} is the default of backends that are {framework} (there is {others})"
        else:
            problem = f"no {kind} is the default; {_installed(self.all(kind))}"
        raise PluginError("", f"{_prefix(setting)}{problem}", action=f"name one in {setting or 'the recipe'}")

    def find(self, text: str) -> tuple[Registered, ...]:
        """Entries that match `NAME`, `KIND:NAME`, `DISTRIBUTION:NAME` or `KIND:DISTRIBUTION:NAME`.

        Raises:
            PluginError: no matching entry is installed.
        """
        *sources, bare = text.split(":")
        kinds = [source for source in sources if source in self._entries]
        distributions = [source for source in sources if source not in self._entries]
        meant = tuple(
            registered
            for kind in self._entries
            for registered in self._entries[kind]
            if registered.entry.name == bare
            and (not kinds or kind in kinds)
            and all(_same(registered.distribution, distribution) for distribution in distributions)
        )
        if meant:
            return meant
        kinds = kinds or [kind for kind in self._entries if bare in self.index.get(kind, {})]
        if len(kinds) == 1:
            self.get(kinds[0], ":".join([*distributions, bare]))  # raises
        near = nearest(bare, {registered.entry.name for kind in self._entries for registered in self._entries[kind]})
        action = f"did you mean {near!r}?" if near else "see ft plugins list"
        raise PluginError("", f"no entry {text!r} is installed", action=action)

    @cached_property
    def index(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """Packages that have an entry, by kind and name."""
        if self._given_index is not None:
            return self._given_index
        import json

        try:
            loaded: Mapping[str, Mapping[str, Sequence[str]]] = json.loads(INDEX.read_text(encoding="utf-8"))
        except OSError:  # the index of this checkout is not yet generated
            return {}
        return loaded

    def _unknown(self, kind: str, source: str, bare: str, setting: str) -> PluginError:
        name = f"{source}:{bare}" if source else bare
        label = f"{kind}:{bare}"
        for fault in self.faults:
            if label in fault.offers and (not source or _same(fault.distribution, source)):
                return PluginError(
                    fault.label,
                    f"{_prefix(setting)}{kind} {bare!r} is brought by a broken plugin: {fault.problem} [{fault.file}]",
                    action=fault.action,
                )
        problem = f"{_prefix(setting)}no {kind} {name!r}; {_installed(self.all(kind))}"
        if self.faults:
            broken = "; ".join(f"{fault.label} ({fault.problem})" for fault in self.faults)
            problem += f"; broken plugins that may bring it: {broken}"
        remedy = self._remedy(kind, source, bare)
        if self.missing:
            made = ", ".join(f"{plugin} {version}".partition(" sha256:")[0] for plugin, version in self.missing.items())
            files = [plugin for plugin, version in self.missing.items() if version.startswith("sha256:")]
            installs = [f"{plugin}=={version}" for plugin, version in self.missing.items() if plugin not in files]
            verb, state = "is" if len(self.missing) == 1 else "are", "installed" if installs else "named"
            problem += f"; the run was made with {made}, which {verb} not {state}"
            ways = [install_command(*installs)] if installs else []
            remedy = "; ".join([*ways, *(f"add --plugins with the path of {file}" for file in files)])
        return PluginError("", problem, action=remedy or "see ft plugins list", known=bool(remedy))

    def _remedy(self, kind: str, source: str, bare: str) -> str:
        actions = []
        same_thing = self._known_elsewhere(kind, bare)
        missing = absent(kind, bare)
        near = "" if same_thing or missing else nearest(bare, {registered.entry.name for registered in self.all(kind)})
        elsewhere = [
            r for other in self._entries for r in self._entries[other] if bare in (r.entry.name, *r.entry.elsewhere)
        ]
        same_name = [r for r in elsewhere if r.kind == kind and r.entry.name == bare]
        if same_name:
            actions.append(f"did you mean {same_name[0].full_name}?")
        elif same_thing:
            others = ((other, self._known_elsewhere(other, bare)) for other in self._entries if other != kind)
            parts = [same_thing, *(f"the {other} {text}" for other, text in others if text)]
            actions.append(f"did you mean {' and '.join(parts)}?")
        elif near:
            actions.append(f"did you mean {near!r}?")
        packages = [p for p in self.index.get(kind, {}).get(bare, ()) if not source or _same(p, source)]
        blocked = [package for package in packages if canonical(package) in self.blocked]
        broken = {fault.distribution for fault in self.faults}
        if blocked:
            actions.append(f"{blocked[0]} brings it and is blocked: leave out -p no:{blocked[0]}")
        elif packages and packages[0] in broken:
            actions.append(f"{packages[0]} brings it and is broken: run ft plugins doctor")
        elif packages:
            actions.append(f"{packages[0]} brings it: {install_command(packages[0])}")
        if elsewhere and not same_name and not near and not same_thing:
            actions.append(f"{bare!r} is {with_article(elsewhere[0].kind)}, not {with_article(kind)}")
        if missing and not actions:
            actions.append(f"no package of finetooth brings {bare}: {missing}")
        return "; ".join(actions)

    def _known_elsewhere(self, kind: str, name: str) -> str:
        """The recipe's spelling of another name in the field: an entry's name with the implied options. Of several
        entries, those that suit this machine."""
        known = [
            (registered.entry, other)
            for registered in self.all(kind)
            for other in registered.entry.elsewhere
            if form(other) == form(name)
        ]
        if len(known) > 1:
            suits = [_suits(entry) for entry, _ in known]
            known = [pair for pair, suiting in zip(known, suits, strict=True) if suiting == max(suits)]
        written = [_written(entry, entry.elsewhere[other]) for entry, other in known]
        if len(known) > 1:
            choices = zip(known, written, strict=True)
            written = [f"{text} ({entry.summary})" if entry.summary else text for (entry, _), text in choices]
        return " or ".join(written)


def _written(entry: Entry, options: Mapping[str, Any]) -> str:
    """An entry as a recipe picks it."""
    implied = ", ".join(f"{option}: {_yaml(value)}" for option, value in options.items())
    return f"{{name: {entry.name}, {implied}}}" if implied else repr(entry.name)


def _suits(entry: Entry) -> tuple[bool, bool]:
    """Whether the machine has such devices, and whether the installed framework supports them."""
    if not isinstance(entry, Hardware):
        return False, False
    here = entry.in_machine is not None and bool(entry.in_machine())
    return here, entry.built_for is not None and entry.built_for()


def _same(distribution: str, source: str) -> bool:
    return distribution == source or canonical(distribution) == canonical(source)


def _prefix(setting: str) -> str:
    return f"{setting}: " if setting else ""


def _installed(entries: Sequence[Registered]) -> str:
    names = list(dict.fromkeys(registered.entry.name for registered in entries))
    return f"installed: {', '.join(names)}" if names else "none is installed"


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
