"""Who is named for an exception that nobody meant to raise."""

from __future__ import annotations

import errno
import json
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_core.running.run_ending import failed
from finetooth_toolbox import blame

KINDS = ("loss", "reward", "tracker", "optimizer", "adapter", "renderer", "evaluator")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of other tests is known here."""
    monkeypatch.setattr(blame, "_owners", {})
    monkeypatch.setattr(blame, "_builders", {})


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, **modules: str) -> Any:
    """A package on the path, and the plugin that its module `plugin` is, as the manager knows it."""
    made = folder / name
    made.mkdir()
    for module, text in {"__init__": "", "plugin": "", **modules}.items():
        (made / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    for module in modules:
        monkeypatch.delitem(sys.modules, f"{name}.{module}", raising=False)
    __import__(f"{name}.plugin")
    entries = [SimpleNamespace(entry=SimpleNamespace(build=f"{name}.{module}:build")) for module in modules]
    return SimpleNamespace(
        distribution=name.replace("_", "-"), version="1.2", module=f"{name}.plugin", file="", entries=entries
    )


def raised(call: Callable[[], Any]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("kind", KINDS)
def test_a_plugin_of_any_kind_is_named_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The exception comes out of a library that the plugin calls, and the plugin is called by another one."""
    name = f"acme_{kind}"
    blame.remember([package(tmp_path, monkeypatch, name, part="import json\n\ndef go():\n    json.loads('{')\n")])
    caller = package(tmp_path, monkeypatch, f"caller_of_{kind}", engine="def call(go):\n    go()\n")
    blame.remember([caller])
    part, engine = __import__(f"{name}.part").part, __import__(f"caller_of_{kind}.engine").engine
    error = raised(lambda: engine.call(part.go))
    assert isinstance(error, json.JSONDecodeError)
    said = blame.line(error)
    assert said.startswith(f"plugin acme-{kind} 1.2: JSONDecodeError: Expecting property name")
    assert f"[{tmp_path}/{name}/part.py:4]" in said and "--debug" in said
    assert failed(error).reason == said and failed(error).exit_code == 1


def test_what_no_plugin_had_to_do_with_is_a_bug() -> None:
    assert blame.line(raised(lambda: [][1])) == "IndexError: list index out of range (a bug; --debug shows where)"


def test_a_builder_in_somebody_elses_package_is_known_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = package(tmp_path, monkeypatch, "acme_front")
    package(tmp_path, monkeypatch, "library", own="def go():\n    1 / 0\n", other="def go():\n    1 / 0\n")
    plugin.entries = [SimpleNamespace(entry=SimpleNamespace(build="library.own:go"))]
    blame.remember([plugin])
    from importlib import import_module

    assert "plugin acme-front 1.2" in blame.line(raised(import_module("library.own").go))
    assert "plugin" not in blame.line(raised(import_module("library.other").go))


def test_what_caused_it_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blame.remember([package(tmp_path, monkeypatch, "acme_deep", part="def go():\n    1 / 0\n")])
    from importlib import import_module

    def wrapped() -> None:
        try:
            import_module("acme_deep.part").go()
        except ZeroDivisionError as error:
            raise RuntimeError("it did not work") from error

    assert blame.line(raised(wrapped)).startswith("plugin acme-deep 1.2: RuntimeError: it did not work [")


@pytest.mark.parametrize(
    ("error", "of_the_disk"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), True),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x/y"), True),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), False),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), False),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), False),
        (urllib.error.URLError("no host"), False),
        (urllib.error.HTTPError("https://acme.example", 503, "Service Unavailable", {}, None), False),  # type: ignore[arg-type]
        (OSError("whatever"), False),
    ],
)
def test_only_files_are_a_matter_of_the_disk(error: OSError, of_the_disk: bool) -> None:
    assert blame.is_of_the_disk(error) is of_the_disk
    assert ("check the disk" in blame.line(error)) is of_the_disk
