"""A thorough look at the installed plugins, for `ft plugins doctor`: what the start of a command has no time for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import modules

from finetooth_hooks import ENTRY_TYPES, CommandContext, Entry
from finetooth_hooks.context import Catalog, PluginFacts
from finetooth_hooks.entries import frameworks_of
from finetooth_kit import CheckResult, collect, run_check
from finetooth_kit.checks import ANY, checks_for


@dataclass(frozen=True)
class Finding:
    """One thing the doctor found.

    Attributes:
        problem: what is wrong.
        file: where, as far as known.
        action: what to do next.
        fault: it must be mended; False for what only limits how the plugin can be used.
    """

    problem: str
    file: str = ""
    action: str = ""
    fault: bool = True

    def line(self) -> str:
        """The finding in one line."""
        where = f" [{self.file}]" if self.file else ""
        return f"{self.problem}{where}" + (f" ({self.action})" if self.action else "")


@dataclass(frozen=True)
class Examination:
    """What the doctor found about one plugin.

    Attributes:
        name: distribution, module or file.
        version: of the distribution.
        findings: empty for a healthy plugin.
        passed: how many checks it passed.
        skipped: checks that do not apply here, with the reason.
    """

    name: str
    version: str
    findings: tuple[Finding, ...]
    passed: int = 0
    skipped: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Nothing must be mended."""
        return not any(finding.fault for finding in self.findings)


def examine(context: CommandContext, names: Sequence[str] = (), *, thorough: bool = True) -> Iterator[Examination]:
    """Examine plugins one after the other, the newest change first: declared requirements, leftovers of other versions,
    faults met at the start, names that clash, and the conformance kit.

    Args:
        names: distributions, modules or files; all plugins if empty.
        thorough: also build every entry and check how it behaves, which imports what the plugins need; otherwise only
            builders, options and hooks are looked at.

    Raises:
        PluginError: no plugin has one of the names.
    """
    for plugin in sorted(context.plugin_facts(names), key=_changed, reverse=True):
        findings = [Finding(fault.problem, fault.file, fault.action) for fault in plugin.faults]
        findings += _clashes(plugin, context.catalog)
        results = _conformance(plugin, thorough) if plugin.file else []
        findings += _failures(results)
        yield Examination(
            plugin.name,
            plugin.version,
            tuple(findings),
            sum(result.status == "passed" for result in results),
            tuple(f"{r.subject} {r.check}: {r.message}" for r in results if r.status == "skipped"),
        )


def announcement(count: int, *, thorough: bool) -> str:
    """How long it will take, for a line before the first answer."""
    plugins = f"{count} plugin{'s' if count > 1 else ''}, the newest change first"
    seconds = STARTING + count * SECONDS if thorough else count * SECONDS_FAST
    long = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
    return f"{plugins}: about {long}" + ("; --fast builds nothing and takes a tenth" if thorough else "")


STARTING, SECONDS, SECONDS_FAST = 10.0, 3.0, 0.3
"""What importing frameworks takes once, and a plugin in the mean, on two cores that have nothing else to do."""


def _changed(plugin: PluginFacts) -> float:
    """When the newest source file of a plugin was written."""
    folder = Path(plugin.file).parent if plugin.module else None
    files = folder.rglob("*.py") if folder else [Path(plugin.file)] if plugin.file else []
    return max((file.stat().st_mtime for file in files), default=0.0)


def _clashes(plugin: PluginFacts, catalog: Catalog) -> Iterator[Finding]:
    for entry in plugin.entries:
        rivals = [r for r in catalog.all(entry.kind) if r.entry is not entry and _meet(r.entry, entry)]
        same = ", ".join(r.full_name for r in rivals if r.distribution != plugin.name and r.entry.name == entry.name)
        if same:
            problem = f"{entry.kind} {entry.name!r} is also brought by {same}"
            yield Finding(problem, plugin.file, f"pick it as {plugin.name}:{entry.name}", fault=False)
        defaults = ", ".join(r.full_name for r in rivals if r.entry.default)
        if entry.default and defaults and entry.kind in _ONE_DEFAULT:
            problem = f"{entry.kind} {entry.name!r} declares itself the default, and so does {defaults}"
            yield Finding(problem, plugin.file, "only one may be the default; uninstall or block the other")


def _meet(one: Entry, other: Entry) -> bool:
    """Whether a backend of one framework can use both entries."""
    frameworks = frameworks_of(one), frameworks_of(other)
    return not all(frameworks) or not frameworks[0].isdisjoint(frameworks[1])


_ONE_DEFAULT = frozenset(ENTRY_TYPES) - {"tracker", "evaluator", "store", "gate"}
"""Kinds of which a recipe picks one."""


def _conformance(plugin: PluginFacts, thorough: bool) -> list[CheckResult]:
    # a local file has no module that a fresh process could import, so only its entries are checked
    subjects = [modules[plugin.module]] if plugin.module else list(plugin.entries)
    checks = collect(*subjects, installed=True)
    if not thorough:
        quick = {function.__name__ for function in checks_for(ANY)}
        checks = [check for check in checks if check.name in quick or check.subject.startswith("plugin:")]
    return [run_check(check) for check in checks]


def _failures(results: Sequence[CheckResult]) -> Iterator[Finding]:
    """One finding for each failed check, and a note for each that the entry expects to fail; without a builder or its
    options all further checks of an entry fail for that, and are not repeated."""
    hopeless: set[str] = set()
    for result in results:
        if result.status == "expected_failure":
            yield Finding(
                f"{result.subject} fails the check {result.check}, as the plugin declares: {result.message}",
                fault=False,
            )
        if result.status == "failed" and result.subject not in hopeless:
            yield _failed(result)
            if result.check in _NEEDED_BY_ALL:
                hopeless.add(result.subject)


_NEEDED_BY_ALL = ("builder_resolves", "options_are_an_options_model")


def _failed(result: CheckResult) -> Finding:
    message = "; ".join(" ".join(line.split()) for line in result.message.splitlines())
    return Finding(
        f"{result.subject} fails the check {result.check}: {message}", "", "report it to the plugin's author"
    )
