"""The kit's checks of stores and gates tried: a sound one passes, each broken one fails the check about its fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from finetooth_kit import CheckResult, collect, failures, run_check

Write = Callable[..., str]

STORE = """
from finetooth_hooks import Store

@hookimpl
def ft_stores():
    example = {"path": "{folder}/kept"}
    yield Store(name="tried", build="{me}_parts:build", summary="tried", tier="TIER", example=example)
"""

FOLDERS = """
import shutil
from pathlib import Path
from finetooth_hooks import StoreError
from finetooth_toolbox.files.manifests import ManifestProblem, check_folder, check_name

class Tried:
    def __init__(self, root): self.root = Path(root); self.place = str(root)
    def names(self): return [p.name for p in self.root.glob("*")] if self.root.exists() else []
    def manifest(self, name):
        try: return (self.root / name / "manifest.json").read_bytes()
        except OSError as error: raise StoreError(self.place, str(error))
    def put(self, name, folder):
        try:
            check_name(name)
            CHECK
        except ManifestProblem as error: raise StoreError(self.place, str(error))
        target = self.root / name
        if target.exists() and self.manifest(name) != (folder / "manifest.json").read_bytes():
            TAKEN
        shutil.copytree(folder, target, dirs_exist_ok=True)
    def fetch(self, name, folder):
        try: shutil.copytree(self.root / name, folder, dirs_exist_ok=True)
        except OSError as error: raise StoreError(self.place, str(error))
        FETCHED
    def remove(self, name):
        NAMED
        REMOVE

class TriedOptions(Options):
    '''Options.'''
    path: str
    '''Where.'''

def build(options: TriedOptions, context: Context): return Tried(options.path)
"""
SOUND = {
    "CHECK": "check_folder(folder)",
    "TAKEN": "raise StoreError(self.place, 'taken')",
    "FETCHED": "pass",
    "NAMED": "if '/' in name or name in ('', '.', '..') or name != name.strip('.\\n') or '\\n' in name: "
    "raise StoreError(self.place, 'odd')",
    "REMOVE": "shutil.rmtree(self.root / name, ignore_errors=True)",
}


def _failed(module: str) -> set[str]:
    """All checks but the one that starts a process of its own."""
    results: list[CheckResult] = [run_check(c) for c in collect(module) if c.name != "imports_nothing_heavy"]
    return {result.check for result in failures(results)}


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, set()),
        ({"CHECK": "pass"}, {"store_never_names_half_a_checkpoint"}),
        ({"TAKEN": "pass"}, {"store_takes_the_same_twice_and_nothing_else"}),
        ({"NAMED": "pass"}, {"store_refuses_odd_names"}),
        ({"REMOVE": "pass"}, {"store_removes_once_and_for_all"}),
        ({"REMOVE": "shutil.rmtree(self.root / name)"}, {"store_removes_once_and_for_all"}),
        (
            {"FETCHED": "(folder / 'state.json').unlink()"},
            {
                "store_gives_back_what_it_was_given",
                "store_takes_the_same_twice_and_nothing_else",
                "store_never_names_half_a_checkpoint",
                "store_removes_once_and_for_all",
            },
        ),
    ],
)
def test_stores_of_folders(plugin: Write, change: dict[str, str], failed: set[str]) -> None:
    parts = FOLDERS
    for name, code in {**SOUND, **change}.items():
        parts = parts.replace(name, code)
    assert _failed(plugin(STORE.replace("TIER", "disk"), parts)) == failed


SNAPSHOTS = """
from dataclasses import replace
class Tried:
    def __init__(self): self.all = []
    def put(self, kept): PUT
    def kept(self): return KEPT
    most = MOST

class TriedOptions(Options):
    '''Options.'''
    path: str
    '''Not used.'''

def build(options: TriedOptions, context: Context): return Tried()
"""
ON_HOST = "self.all = [*self.all, replace(kept, snapshot=kept.snapshot.to_host())][-2:]"


@pytest.mark.parametrize(
    ("tier", "put", "kept", "failed", "most"),
    [
        ("device", "self.all = [*self.all, kept][-2:]", "self.all", set(), 2),
        ("device", "self.all = [*self.all, kept][-2:]", "self.all", {"snapshots_are_bounded_and_in_order"}, 1),
        ("host", ON_HOST, "self.all", set(), 2),
        ("host", "self.all = [*self.all, kept][-2:]", "self.all", {"snapshots_are_bounded_and_in_order"}, 2),
        ("device", "self.all.append(kept)", "self.all", {"snapshots_are_bounded_and_in_order"}, 40),
        ("device", "self.all = [*self.all, kept][-2:]", "self.all[::-1]", {"snapshots_are_bounded_and_in_order"}, 2),
    ],
)
def test_stores_of_snapshots(plugin: Write, tier: str, put: str, kept: str, failed: set[str], most: int) -> None:
    parts = SNAPSHOTS.replace("PUT", put).replace("KEPT", kept).replace("MOST", str(most))
    assert _failed(plugin(STORE.replace("TIER", tier), parts)) == failed


GATE = """
from finetooth_hooks import Gate

@hookimpl
def ft_gates():
    yield Gate(name="tried", build="{me}_parts:build", summary="tried", engine=True)
"""
GATES = """
import itertools
class Tried:
    count = itertools.count()
    def check(self, candidate): CHECK
def build(options: NoOptions, context: Context): return Tried()
"""


@pytest.mark.parametrize(
    ("check", "failed"),
    [
        ("return '' if candidate.metrics else 'no metrics'", set()),
        ("return open(candidate.folder / 'state.json').read()[:0]", set()),  # what is raised is a reason
        ("return None", {"gate_answers_and_changes_nothing", "gate_survives_a_broken_folder"}),
        ("return 'two\\nlines'", {"gate_answers_and_changes_nothing", "gate_survives_a_broken_folder"}),
        ("return str(next(self.count))", {"gate_answers_and_changes_nothing"}),
        ("candidate.engine.step(); return ''", {"gate_answers_and_changes_nothing"}),
        (
            "(candidate.folder.parent / 'note.txt').write_text('x'); return ''",
            {"gate_answers_and_changes_nothing", "gate_survives_a_broken_folder"},
        ),
    ],
)
def test_gates(plugin: Write, check: str, failed: set[str]) -> None:
    assert _failed(plugin(GATE, GATES.replace("CHECK", check))) == failed
