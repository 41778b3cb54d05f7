"""Each way in which a plugin can be broken is named with distribution, file and remedy, and stops nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from finetooth_core.plugins.manager import Plugins, start
from finetooth_hooks import PluginError, UserError, install_command

HEAD = "from finetooth_hooks import Loss, Reward, hookimpl\n"


def faults(plugins: Plugins, distribution: str) -> list[str]:
    return [fault.line() for fault in plugins.faults if fault.distribution == distribution]


def test_a_sound_plugin_is_in_the_catalog_with_its_source(site, loss_plugin) -> None:
    module = site.add("acme-hinge", loss_plugin("wedge"), version="1.2.3")
    plugins = start()
    found = plugins.catalog.get("loss", "wedge")
    assert (found.distribution, found.version, found.module) == ("acme-hinge", "1.2.3", module)
    assert found.full_name == "acme-hinge:wedge"
    assert plugins.catalog.get("loss", "acme-hinge:wedge") is found
    assert plugins.catalog.get("loss", "Acme_Hinge:wedge") is found
    assert found.file.endswith("plugin.py")
    assert plugins.versions["acme-hinge"] == "1.2.3"
    assert not faults(plugins, "acme-hinge")


LOSS = "yield Loss(name='x', build='a.b:c')"
BROKEN = {
    "raises on import": ("raise RuntimeError('no luck')", "cannot be imported: RuntimeError: no luck", "plugin.py:1"),
    "exits on import": ("import sys\nsys.exit(3)", "cannot be imported: SystemExit: 3", "plugin.py:2"),
    "does not parse": ("def f(:\n", "cannot be imported: SyntaxError", "plugin.py:1"),
    "misses a module": (
        "import nonesuch_module",
        "cannot be imported: ModuleNotFoundError: No module named 'nonesuch_module'",
        f"install what brings 'nonesuch_module': {install_command('PACKAGE')}",
    ),
    "misspells a hook": (
        f"{HEAD}@hookimpl\ndef ft_loss():\n    {LOSS}",
        "ft_loss is not a hook; the nearest is ft_losses",
        "rename it to ft_losses",
    ),
    "misspells a hook and forgets the decorator": (
        f"{HEAD}def ft_loses():\n    {LOSS}",
        "ft_loses is not a hook, and lacks the decorator; the nearest is ft_losses",
        "plugin.py:2",
    ),
    "forgets the decorator": (
        f"{HEAD}def ft_losses():\n    {LOSS}",
        "ft_losses lacks its decorator",
        "put @hookimpl above it",
    ),
    "takes an unknown argument": (
        f"{HEAD}@hookimpl\ndef ft_step(run, step_report): pass",
        "ft_step takes 'step_report', which the hook does not have (it has run, report)",
        "remove it",
    ),
    "gives an argument a default": (
        f"{HEAD}@hookimpl\ndef ft_step(run, report=None): pass",
        "gives its argument 'report' a default, so it would never be passed",
        "remove the default",
    ),
    "wraps": (
        f"{HEAD}@hookimpl(wrapper=True)\ndef ft_step(run):\n    return (yield)",
        "wrapper=True, which finetooth does not support",
        "remove wrapper=True",
    ),
    "misspells an option of the decorator": (
        f"{HEAD}@hookimpl(optionalhok=True)\ndef ft_step(run): pass",
        "unexpected keyword argument 'optionalhok'",
        "plugin.py:2",
    ),
    "yields in an event": (f"{HEAD}@hookimpl\ndef ft_step(run):\n    yield 1", "would never run", "plain function"),
    "yields a dict": (f"{HEAD}@hookimpl\ndef ft_losses():\n    yield dict(name='x')", "yields a dict", "Loss entries"),
    "yields a tuple": (f"{HEAD}@hookimpl\ndef ft_losses():\n    yield ('x', 'y')", "yields a tuple", "Loss entries"),
    "yields None": (f"{HEAD}@hookimpl\ndef ft_losses():\n    yield None", "yields None", "Loss entries"),
    "returns None": (f"{HEAD}@hookimpl\ndef ft_losses(): pass", "ft_losses returned None", "must yield Loss"),
    "returns one entry": (
        f"{HEAD}@hookimpl\ndef ft_losses():\n    return Loss(name='x', build='a.b:c')",
        "returned a single Loss; it must yield it",
        "must yield",
    ),
    "yields another kind": (
        f"{HEAD}@hookimpl\ndef ft_losses():\n    yield Reward(name='r', build='a.b:c')",
        "yields a Reward ('r'), which belongs in ft_rewards",
        "Loss entries",
    ),
    "raises in a hook": (
        f"{HEAD}@hookimpl\ndef ft_losses():\n    yield Loss(nam='x')",
        "ft_losses raised TypeError",
        "plugin.py:4",
    ),
    "gives a bad name": (
        f"{HEAD}@hookimpl\ndef ft_losses():\n    yield Loss(name='My Loss', build='a.b:c')",
        "yields 'My Loss', which is not an entry name",
        "plugin.py",
    ),
    "gives a bad reference": (
        f"{HEAD}@hookimpl\ndef ft_losses():\n    yield Loss(name='x', build='a.b.c')",
        "'a.b.c', which is not 'package.module:function'",
        "plugin.py",
    ),
    "gives a string for a set": (
        "from finetooth_hooks import Adapter, hookimpl\n@hookimpl\ndef ft_adapters():\n"
        "    yield Adapter(name='x', build='a.b:c', frameworks='torch')",
        "frameworks='torch', which is not a set of strings",
        "plugin.py",
    ),
    "yields a name twice": (
        f"{HEAD}@hookimpl\ndef ft_losses():\n    {LOSS}\n    {LOSS}",
        "it yields loss 'x' twice",
        "its own name",
    ),
    "is no function": ("ft_losses = []", "ft_losses is a list, not a function", "@hookimpl"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_plugin_is_named_and_left_out(site, loss_plugin, how: str) -> None:
    source, problem, detail = BROKEN[how]
    module = site.add("acme-broken", source)
    site.add("acme-sound", loss_plugin("sound"))
    plugins = start()
    lines = faults(plugins, "acme-broken")
    assert lines, how
    assert "acme-broken 1.0: " in lines[0]
    assert problem in lines[0]
    assert any(detail in line for line in lines)
    assert str(site.folder / module.replace(".", "/")) in lines[0]
    assert "\n" not in lines[0]
    assert plugins.catalog.get("loss", "sound").distribution == "acme-sound"
    assert all(plugin.distribution != "acme-broken" for plugin in plugins.loaded)
    with pytest.raises(PluginError) as caught:  # named by the user, it is fatal
        start(files=["acme-broken"])
    assert problem in str(caught.value)
    assert caught.value.exit_code == 2


def test_another_contract_is_refused_before_the_import(site) -> None:
    module = site.add("acme-next", "raise SystemExit('imported')", requires=["finetooth-hooks>=9,<10"])
    (line,) = faults(start(), "acme-next")
    assert "it needs finetooth-hooks>=9,<10, and finetooth-hooks 2.0.0 is installed; it was not imported" in line
    assert "pip install --upgrade finetooth)" in line
    assert str(site.folder) in line
    assert module not in sys.modules


def test_a_missing_dependency_is_named_with_its_command(site) -> None:
    site.add("acme-needy", "import nonesuch_module", requires=["finetooth-hooks>=2,<3", "nonesuch>=3,<4"])
    (line,) = faults(start(), "acme-needy")
    assert "No module named 'nonesuch_module'" in line
    assert "nonesuch>=3,<4 (not installed)" in line
    assert "pip install 'nonesuch>=3,<4')" in line


def test_a_deep_import_error_keeps_its_message_and_names_the_plugins_own_line(site) -> None:
    site.add("acme-deep", "\nimport PACKAGE.inner", files={"inner.py": "x = 1\nfrom json import nonesuch"})
    (line,) = faults(start(), "acme-deep")
    assert "ImportError: cannot import name 'nonesuch' from 'json'" in line
    assert "inner.py:2" in line


def test_optional_hooks_modules_and_constants_named_like_hooks_are_no_faults(site) -> None:
    source = """
        import types
        from finetooth_hooks import Loss, hookimpl
        import PACKAGE.ft_rewards as ft_rewards      # a package under a hook's name is no hook
        ft_size = 3

        @hookimpl(optionalhook=True)
        def ft_of_a_later_contract(run): ...

        @hookimpl(specname="ft_losses")
        def losses():
            yield Loss(name="spec", build="a.b:c")
    """
    site.add("acme-careful", source, files={"ft_rewards.py": "finetooth_impl = {}\n"})
    plugins = start()
    assert not faults(plugins, "acme-careful")
    assert plugins.catalog.get("loss", "spec")


def test_an_event_hook_gets_only_the_arguments_it_takes(site) -> None:
    site.add("acme-brief", f"{HEAD}@hookimpl\ndef ft_step(run):\n    run.append(1)\n")
    (event,) = (event for event in start().events if event.name == "acme-brief")
    seen: list[int] = []
    event.call("ft_step", run=seen, report="not taken")
    assert seen == [1]


def test_two_distributions_with_one_module_clash(site, loss_plugin) -> None:
    module = site.add("acme-first", loss_plugin("only"))
    site.add("acme-second", entry_points=f"[finetooth]\nx = {module}\n")
    plugins = start()
    (line,) = faults(plugins, "acme-second")
    assert f"its module {module} is already in use by acme-first" in line
    assert plugins.catalog.get("loss", "only").distribution == "acme-first"


def test_an_entry_point_without_its_module_is_named(site) -> None:
    site.add("acme-hollow", entry_points="[finetooth]\nx = PACKAGE.gone\n")
    (line,) = faults(start(), "acme-hollow")
    assert "ModuleNotFoundError: No module named 'acme_" in line
    assert "__init__.py" in line
    assert "-p no:acme-hollow" in line


def test_an_entry_point_must_name_one_module(site) -> None:
    site.add("acme-attribute", entry_points="[finetooth]\nx = PACKAGE.plugin:thing\n")
    site.add("acme-two", entry_points="[finetooth]\na = PACKAGE.plugin\nb = PACKAGE\n")
    plugins = start()
    assert "names an attribute" in faults(plugins, "acme-attribute")[0]
    assert "has 2 entry points" in faults(plugins, "acme-two")[0]


def test_blocked_is_not_imported(site) -> None:
    module = site.add("acme-blocked", "raise RuntimeError")
    plugins = start(blocked=["Acme_Blocked"])
    assert not faults(plugins, "acme-blocked")
    assert module not in sys.modules
    assert plugins.blocked == ("acme-blocked",)
    with pytest.raises(PluginError, match=r"-p no:acme-bloked: .*did you mean no:acme-blocked"):
        start(blocked=["acme-bloked"])
    with pytest.raises(PluginError, match="it is named and blocked"):
        start(blocked=["acme-blocked"], files=["acme-blocked"])


# --- what the user names ----------------------------------------------------------------------------------------------


def test_versions_asked_for_are_checked(site, loss_plugin) -> None:
    site.add("acme-versions", loss_plugin(), version="1.5")
    named = start(files=["acme-versions>=1.2,<2"])
    assert next(p for p in named.loaded if p.distribution == "acme-versions").named_by_user
    with pytest.raises(PluginError, match=r"version 1\.5 is installed, and acme-versions>=2 is asked for.*pip install"):
        start(files=["acme-versions>=2"])
    with pytest.raises(PluginError, match=r"acme-absent: no installed plugin.*pip install 'acme-absent>=1'"):
        start(files=["acme-absent>=1"])


def test_several_broken_named_plugins_are_all_told(site) -> None:
    with pytest.raises(PluginError) as caught:
        start(files=["acme-gone", "./nowhere.py"])
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["acme-gone", "nowhere.py"]


LOCAL = """
from __future__ import annotations
from dataclasses import dataclass, field
from typing import ClassVar
from finetooth_hooks import Loss, Options, hookimpl

@dataclass(frozen=True)
class Kept:
    total: ClassVar[int] = 0
    seen: list[int] = field(default_factory=list)

class CiOptions(Options):
    min_score: float = 0.5
    \"\"\"Least score.\"\"\"

plugin_options = CiOptions

@hookimpl
def ft_losses():
    yield Loss(name="local", build=f"{__name__}:build")

@hookimpl
def ft_step(report, run):
    run.append(report)

def build(options, context):
    return Kept()
"""


def test_a_local_file_is_a_plugin(site, tmp_path: Path) -> None:
    import hashlib
    from importlib import import_module

    (tmp_path / "ci.py").write_text(LOCAL)
    plugins = start(files=[{"use": "./ci.py", "options": {"min_score": 0.75}}], base=tmp_path)
    (loaded,) = (plugin for plugin in plugins.loaded if plugin.sha256)
    assert loaded.distribution == "ci.py"
    assert plugins.versions["ci.py"] == "sha256:" + hashlib.sha256(LOCAL.encode()).hexdigest()
    module, _, function = plugins.catalog.get("loss", "ci.py:local").entry.build.partition(":")
    assert getattr(import_module(module), function)(None, None).seen == []
    (event,) = (event for event in plugins.events if event.name == "ci.py")
    assert event.named_by_user
    assert event.options.min_score == 0.75
    seen: list[str] = []
    event.call("ft_step", run=seen, report="a report")
    event.call("ft_run_end", run=seen, outcome="not observed")
    assert seen == ["a report"]


def test_a_local_file_runs_once_until_it_changes(site, tmp_path: Path) -> None:
    file = tmp_path / "once.py"
    file.write_text(LOCAL)
    first = start(files=["once.py"], base=tmp_path).events[-1].module
    assert start(files=["./once.py", str(file)], base=tmp_path).events[-1].module is first
    file.write_text(LOCAL + "\nchanged = True\n")
    assert start(files=["once.py"], base=tmp_path).events[-1].module.changed


def test_options_are_checked_at_the_start(site, tmp_path: Path) -> None:
    (tmp_path / "ci.py").write_text(LOCAL)
    (tmp_path / "plain.py").write_text(f"{HEAD}@hookimpl\ndef ft_step(run): ...\n")
    with pytest.raises(UserError, match=r"plugins\.ci\.py\.options\.min_scor: unknown option .*min_score"):
        start(files=[{"use": "ci.py", "options": {"min_scor": 1.0}}], base=tmp_path)
    with pytest.raises(UserError, match=r"min_score: expected a number, got the text 'high'"):
        start(files=[{"use": "ci.py", "options": {"min_score": "high"}}], base=tmp_path)
    with pytest.raises(PluginError, match=r"plain\.py: it takes no options, and min_score is given"):
        start(files=[{"use": "plain.py", "options": {"min_score": 1.0}}], base=tmp_path)
    with pytest.raises(PluginError, match="twice with different options"):
        start(files=[{"use": "ci.py", "options": {}}, {"use": "ci.py", "options": {"min_score": 1.0}}], base=tmp_path)
    with pytest.raises(PluginError, match="unknown key 'option'"):
        start(files=[{"use": "ci.py", "option": {}}], base=tmp_path)


def test_options_of_an_installed_plugin_by_reference(site) -> None:
    options = "from finetooth_hooks import Options\nclass Mine(Options):\n    rate: float = 2.0\n"
    site.add(
        "acme-options",
        f"{HEAD}plugin_options = 'PACKAGE.options:Mine'\n@hookimpl\ndef ft_step(run): ...",
        files={"options.py": options},
    )
    (event,) = (event for event in start().events if event.name == "acme-options")
    assert event.options.rate == 2.0
    assert not event.named_by_user
    (event,) = (
        event
        for event in start(files=[{"use": "acme-options", "options": {"rate": 3.5}}]).events
        if event.name == "acme-options"
    )
    assert event.options.rate == 3.5


def test_a_file_without_hooks_and_a_broken_file_are_refused(site, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(PluginError, match=r"empty\.py: it has no hook"):
        start(files=["empty.py"], base=tmp_path)
    (tmp_path / "broken.py").write_text("x = 1\n1 / 0\n")
    with pytest.raises(PluginError, match=r"ZeroDivisionError: division by zero \[.*broken\.py:2\]"):
        start(files=["broken.py"], base=tmp_path)
    assert not any("broken" in name for name in sys.modules if name.startswith("finetooth_local_"))


def test_a_module_is_a_plugin(site, loss_plugin) -> None:
    module = site.add("acme-bare", loss_plugin("bare"), entry_points="[other]\nx = y\n")
    assert all(plugin.module != module for plugin in start().loaded)
    assert start(files=[module]).catalog.get("loss", "bare").distribution == module


def test_an_entry_point_named_by_its_module_is_not_loaded_twice(site, loss_plugin) -> None:
    module = site.add("acme-once", loss_plugin("once"))
    plugins = start(files=[module])
    (loaded,) = (plugin for plugin in plugins.loaded if plugin.module == module)
    assert (loaded.distribution, loaded.named_by_user) == ("acme-once", True)


# --- light ------------------------------------------------------------------------------------------------------------


def test_finding_plugins_imports_not_even_importlib_metadata() -> None:
    program = "import sys\nfrom finetooth_core.plugins import manager\nmanager.discover()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"importlib.metadata", "packaging", "email", "json", "hashlib"} & set(done.stdout.split())


def test_starting_imports_nothing_heavy() -> None:
    program = dedent("""
        import sys
        from finetooth_core.plugins import manager
        plugins = manager.start()
        heavy = ["torch", "transformers", "datasets", "mlx", "pydantic", "numpy", "rich", "yaml", "packaging", "click"]
        print(*[name for name in heavy if name in sys.modules])
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
