"""Facts about each plugin, including broken ones; gathering them would slow the start of a command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetooth_hooks import CONTRACT_VERSION, install_command
from finetooth_hooks.context import PluginFacts, PluginFault

from finetooth_core.plugins import versions
from finetooth_core.plugins.distributions import Installed
from finetooth_core.plugins.manager import CONTRACT, Plugins
from finetooth_core.plugins.references import choose


def plugin_facts(plugins: Plugins, names: Sequence[str] = ()) -> Iterator[PluginFacts]:
    """See `CommandContext.plugin_facts`.

    Args:
        plugins: started with `strict=False`, so that broken ones are included.

    Raises:
        PluginError: no plugin has one of the names.
    """
    installed = {plugin.distribution: plugin for plugin in plugins.installed}
    loaded = {plugin.distribution: plugin for plugin in plugins.loaded}
    known = sorted({*installed, *loaded, *(fault.distribution for fault in plugins.faults)} - set(plugins.blocked))
    for name in choose(known, names):
        faults = [PluginFault(f.problem, f.file, f.action) for f in plugins.faults if f.distribution == name]
        faults += _installation(installed[name]) if name in installed else ()
        version = installed[name].version if name in installed else ""
        plugin = loaded.get(name)
        if plugin is None:
            yield PluginFacts(name, version, "", "", (), tuple(faults))
        else:  # a local file has no module that a fresh process could import
            module = "" if plugin.sha256 else plugin.module
            entries = tuple(registered.entry for registered in plugin.entries)
            yield PluginFacts(name, version, plugin.file, module, entries, tuple(faults))


def _installation(installed: Installed) -> Iterator[PluginFault]:
    metadata = str(installed.folder / "METADATA")
    if not versions.on(CONTRACT, installed.requires):
        major = int(CONTRACT_VERSION.partition(".")[0])
        action = f'add "{CONTRACT}>={major},<{major + 1}" to its dependencies'
        yield PluginFault(f"it does not say which version of {CONTRACT} it is made for", metadata, action)
    for missing in versions.unmet(installed.requires):
        if missing.requirement.name != CONTRACT or missing.installed is None:
            yield PluginFault(f"it requires {missing}", metadata, install_command(missing.requirement.text))
    for folder in installed.shadowed:
        action = f"uninstall and install again: {install_command(installed.distribution, option='--force-reinstall')}"
        yield PluginFault("a second installation is left over", str(folder), action)
