"""A thorough look at the installed plugins, for `ft plugins doctor`: what the start of a command has no time for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetooth_hooks import ENTRY_TYPES

from finetooth_core import versions
from finetooth_core.distributions import Installed
from finetooth_core.loaded_plugin import Loaded
from finetooth_core.manager import CONTRACT, Plugins
from finetooth_core.references import choose

if TYPE_CHECKING:
    from finetooth_kit import CheckResult


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


def examine(plugins: Plugins, names: Sequence[str] = (), *, thorough: bool = True) -> Iterator[Examination]:
    """Examine plugins one after the other: declared requirements, leftovers of other versions, faults met at the start,
    names that clash, and the conformance kit.

    Args:
        plugins: started with `strict=False`, so that broken ones are there.
        names: distributions, modules or files; all plugins if empty.
        thorough: also build every entry and check how it behaves, which imports what the plugins need; otherwise only
            builders, options and hooks are looked at.

    Raises:
        PluginError: a name is no plugin.
    """
    installed = {found.distribution: found for found in plugins.installed}
    loaded = {plugin.distribution: plugin for plugin in plugins.loaded}
    known = sorted({*installed, *loaded, *(fault.distribution for fault in plugins.faults)} - set(plugins.blocked))
    for name in choose(known, names):
        findings = [Finding(f.problem, f.file, f.action) for f in plugins.faults if f.distribution == name]
        version, results = "", []
        if name in installed:
            version = installed[name].version
            findings += _installation(installed[name])
        if name in loaded:
            findings += _clashes(loaded[name], plugins)
            results = _conformance(loaded[name], thorough)
            findings += _failures(results)
        yield Examination(
            name,
            version,
            tuple(findings),
            sum(result.status == "passed" for result in results),
            tuple(f"{r.subject} {r.check}: {r.message}" for r in results if r.status == "skipped"),
        )


def _installation(installed: Installed) -> Iterator[Finding]:
    metadata = str(installed.folder / "METADATA")
    if not versions.on(CONTRACT, installed.requires):
        action = f'add "{CONTRACT}>=1,<2" to its dependencies'
        yield Finding(f"it does not say which version of {CONTRACT} it is made for", metadata, action)
    for missing in versions.unmet(installed.requires):
        if missing.requirement.name != CONTRACT or missing.installed is None:
            yield Finding(f"it requires {missing}", metadata, versions.install_command([missing.requirement]))
    for folder in installed.shadowed:
        action = f"uninstall and install again: pip install --force-reinstall {installed.distribution}"
        yield Finding("a second installation is left over", str(folder), action)


def _clashes(plugin: Loaded, plugins: Plugins) -> Iterator[Finding]:
    for registered in plugin.entries:
        kind, entry = registered.kind, registered.entry
        same = [r for r in plugins.catalog.all(kind) if r.entry.name == entry.name and r != registered]
        if same:
            others = ", ".join(r.full_name for r in same)
            problem = f"{kind} {entry.name!r} is also brought by {others}"
            yield Finding(problem, plugin.file, f"pick it as {registered.full_name}", fault=False)
        rivals = [r for r in plugins.catalog.defaults(kind) if r != registered] if entry.default else []
        if rivals and kind in _ONE_DEFAULT:
            others = ", ".join(r.full_name for r in rivals)
            problem = f"{kind} {entry.name!r} says it is the default, and so does {others}"
            yield Finding(problem, plugin.file, "only one may be the default; uninstall or block the other")


_ONE_DEFAULT = frozenset(ENTRY_TYPES) - {"tracker", "evaluator", "store", "gate"}
"""Kinds of which a recipe picks one."""


def _conformance(plugin: Loaded, thorough: bool) -> list[CheckResult]:
    from sys import modules

    from finetooth_kit import collect, run_check
    from finetooth_kit.checks import ANY, checks_for

    # a local file has no module that a fresh process could import, so only its entries are checked
    subjects = [r.entry for r in plugin.entries] if plugin.sha256 else [modules[plugin.module]]
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
            yield Finding(f"{result.subject} fails the check {result.check}, as it says: {result.message}", fault=False)
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
