"""Lines of `ft plugins list` and `ft plugins show`, as plain text: rich would take longer to import than to print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from finetooth_hooks import ENTRY_TYPES, PluginError
from finetooth_toolbox.text.nearest import nearest

from finetooth_core.plugins.catalog import Registered
from finetooth_core.plugins.loaded_plugin import Loaded
from finetooth_core.plugins.manager import Plugins
from finetooth_core.plugins.references import choose


def list_lines(plugins: Plugins, kind: str | None = None) -> Iterator[str]:
    """A table of all plugins, then the faults.

    Raises:
        PluginError: the kind is unknown.
    """
    if kind is not None and kind not in ENTRY_TYPES:
        near = nearest(kind, ENTRY_TYPES)
        meant = f"did you mean {near}? " if near else ""
        raise PluginError("", f"--kind {kind}: no such kind", action=f"{meant}kinds are {', '.join(ENTRY_TYPES)}")
    shown = [p for p in plugins.loaded if kind is None or any(r.kind == kind for r in p.entries)]
    rows = [("plugin", "version", "brings")]
    rows += [(p.distribution, p.version or f"file {p.sha256[:12]}", _brings(plugins, p, kind)) for p in shown]
    yield from _table(rows)
    for fault in plugins.faults:
        yield f"broken: {fault.line()}"
    for name in plugins.blocked:
        yield f"blocked: {name}"


def show_lines(plugins: Plugins, name: str) -> Iterator[str]:
    """Everything about one plugin.

    Raises:
        PluginError: no plugin has this name.
    """
    installed = {plugin.distribution: plugin for plugin in plugins.installed}
    loaded = {plugin.distribution: plugin for plugin in plugins.loaded}
    (name,) = choose(sorted({*installed, *loaded, *(f.distribution for f in plugins.faults)}), [name])
    version = installed[name].version if name in installed else ""
    yield f"{name} {version}".rstrip()
    if name in loaded:
        yield f"module    {loaded[name].module}"
        yield f"file      {loaded[name].file}"
        if loaded[name].sha256:
            yield f"sha256    {loaded[name].sha256}"
    if name in installed and installed[name].requires:
        yield f"requires  {', '.join(installed[name].requires)}"
    for fault in plugins.faults:
        if fault.distribution == name:
            yield f"broken    {fault.line()}"
    if name in plugins.blocked:
        yield "blocked   by -p no:"
    if name in loaded:
        yield from _entries(loaded[name].entries)
        hooks = [hook for event in plugins.events if event.name == name for hook in event.hooks]
        if hooks:
            yield f"observes  {', '.join(hooks)}"


def _entries(entries: Iterable[Registered]) -> Iterator[str]:
    rows = [
        (f"  {r.kind}:{r.entry.name}", r.entry.summary + (" (the default)" if r.entry.default else "")) for r in entries
    ]
    if rows:
        yield "entries"
        yield from _table(rows)


def _brings(plugins: Plugins, plugin: Loaded, kind: str | None) -> str:
    names: dict[str, list[str]] = {}
    for registered in plugin.entries:
        if kind is None or registered.kind == kind:
            names.setdefault(registered.kind, []).append(registered.entry.name)
    parts = [f"{of_kind} {', '.join(names[of_kind])}" for of_kind in names]
    if kind is None:
        parts += [hook for event in plugins.events if event.name == plugin.distribution for hook in event.hooks]
    return "; ".join(parts)


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as their longest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
