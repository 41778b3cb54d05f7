"""Checks of stores and gates: what is kept is whole, what is half is never named, and looking changes nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import entries
from finetooth_hooks.checkpoints import Candidate, StepSnapshot, Store
from finetooth_hooks.data.datum import Datum, TokenChunk
from finetooth_hooks.errors import FinetoothError, StoreError
from finetooth_toolbox.files.manifests import MANIFEST

from finetooth_kit.checks import (
    CheckFailed,
    CheckSkipped,
    EntryCase,
    check_for,
    expect,
    expect_instance,
    fail,
)
from finetooth_kit.fake_engine import FakeEngine

_ODD = ("", ".", "..", "../step-1", "a/b", ".hidden", "/tmp", "step\n1")


def whole_checkpoint(folder: Path, step: int = 1, files: Mapping[str, bytes] | None = None) -> Path:
    """Write a small checkpoint with a true manifest; returns the folder.

    Args:
        folder: made if missing.
        files: more of its files by path, `engine/trained.safetensors`.
    """
    content = {
        "engine/fake.txt": b"0",
        "engine/weights.bin": bytes(range(256)) * 40,
        "state.json": json.dumps({"step": step}).encode(),
        "history.jsonl": b"",
        **(files or {}),
    }
    listed: dict[str, Any] = {}
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        listed[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps({"step": step, "files": listed}), encoding="utf-8")
    return folder


def _content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _fetch(case: EntryCase, store: Store, name: str) -> dict[str, bytes]:
    target = case.folder / "fetched" / os.urandom(4).hex()
    target.mkdir(parents=True)
    store.fetch(name, target)
    return _content(target)


def _expect_store_error(called: str, call: Callable[[], object]) -> None:
    """Fail unless it raises StoreError, on one line."""
    try:
        got = call()
    except StoreError as error:
        expect("\n" not in str(error), called, str(error), "one line")
        return
    except Exception as error:
        fail(called, f"{type(error).__name__}: {error}", "StoreError")
    fail(called, f"no error, {got!r}"[:200], "StoreError")


def _folder_store(case: EntryCase) -> Store:
    assert isinstance(case.entry, entries.Store)
    if case.entry.tier not in ("disk", "remote"):
        raise CheckSkipped(f"a store of the tier {case.entry.tier} keeps no folders")
    store: Store = case.build()
    return store


@check_for("store")
def store_gives_back_what_it_was_given(case: EntryCase) -> None:
    """Kept, named, listed and fetched: the same bytes; a second store over the same place sees it too."""
    store = _folder_store(case)
    expect(isinstance(store.place, str) and store.place, "place", repr(store.place), "the folder or URL")
    expect(store.names() == [], "names() before anything is kept", store.names(), "[]")
    folder = whole_checkpoint(case.folder / "made")
    before = _content(folder)
    store.put("step-1", folder)
    expect(_content(folder) == before, "put('step-1', folder)", "the folder changed", "a copy; the folder as it was")
    for which, seen in (("names()", store), ("names() of a second store", case.build())):
        expect(seen.names() == ["step-1"], which, seen.names(), "['step-1']")
    expect(store.manifest("step-1") == before[MANIFEST], "manifest('step-1')", "other bytes", "those of its file")
    fetched = _fetch(case, store, "step-1")
    expect(fetched == before, "fetch('step-1', empty folder)", sorted(fetched), f"the same files: {sorted(before)}")


@check_for("store")
def store_takes_the_same_twice_and_nothing_else(case: EntryCase) -> None:
    """Kept again under its name, nothing changes; another checkpoint under a name that is taken is refused."""
    store = _folder_store(case)
    folder = whole_checkpoint(case.folder / "made")
    store.put("step-1", folder)
    store.put("step-1", folder)
    store.put("step-2", whole_checkpoint(case.folder / "two", 2))
    expect(sorted(store.names()) == ["step-1", "step-2"], "names()", store.names(), "['step-1', 'step-2']")
    other = whole_checkpoint(case.folder / "other", 7)
    _expect_store_error("put('step-1', another checkpoint)", lambda: store.put("step-1", other))
    same = _fetch(case, store, "step-1") == _content(folder)
    expect(same, "fetch('step-1') after a refused put", "other files", "those that were kept first")


@check_for("store")
def store_never_names_half_a_checkpoint(case: EntryCase) -> None:
    """A folder that is not as its manifest says is refused, is not named, and harms nothing that is kept."""
    store = _folder_store(case)
    whole = whole_checkpoint(case.folder / "whole", 1)
    store.put("step-1", whole)

    def broken(how: str) -> Path:
        folder = whole_checkpoint(case.folder / how.replace(" ", "-"), 2)
        file = folder / "engine/weights.bin"
        if how == "a missing file":
            file.unlink()
        elif how == "a flipped bit":
            file.write_bytes(b"\x01" + file.read_bytes()[1:])
        elif how == "a truncated file":
            file.write_bytes(file.read_bytes()[:-1])
        elif how == "no manifest":
            (folder / MANIFEST).unlink()
        elif how == "a torn manifest":
            (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:-9])
        elif how == "a link":
            (folder / "engine/linked.bin").symlink_to(whole / "state.json")
        return folder

    for how in ("a missing file", "a flipped bit", "a truncated file", "no manifest", "a torn manifest", "a link"):
        folder = broken(how)
        _expect_store_error(f"put('step-2', a folder with {how})", lambda folder=folder: store.put("step-2", folder))  # type: ignore[misc]
        expect(store.names() == ["step-1"], f"names() after {how}", store.names(), "['step-1']")
    same = _fetch(case, store, "step-1") == _content(whole)
    expect(same, "fetch('step-1') after refused puts", "other files", "those that were kept")
    store.put("step-2", whole_checkpoint(case.folder / "mended", 2))
    expect(sorted(store.names()) == ["step-1", "step-2"], "names()", store.names(), "['step-1', 'step-2']")


@check_for("store")
def store_refuses_odd_names(case: EntryCase) -> None:
    """A hidden name or one of several path parts is refused; a missing checkpoint is reported as missing."""
    store = _folder_store(case)
    folder = whole_checkpoint(case.folder / "made")
    before = {path for path in case.folder.rglob("*") if "fetched" not in path.parts}
    for name in _ODD:
        _expect_store_error(f"put({name!r}, folder)", lambda name=name: store.put(name, folder))  # type: ignore[misc]
        _expect_store_error(f"remove({name!r})", lambda name=name: store.remove(name))  # type: ignore[misc]
    expect(store.names() == [], "names() after refused puts", store.names(), "[]")
    deleted = before - set(case.folder.rglob("*"))
    expect(not deleted, "remove of odd names", f"deleted {sorted(map(str, deleted))}", "nothing deleted")
    _expect_store_error("manifest('step-9'), which is not there", lambda: store.manifest("step-9"))
    _expect_store_error("fetch('step-9', ...), which is not there", lambda: _fetch(case, store, "step-9"))


@check_for("store")
def store_removes_once_and_for_all(case: EntryCase) -> None:
    """What is removed is not named any more and cannot be fetched; removing it again does nothing; others stay; and
    its name can be taken again."""
    store = _folder_store(case)
    first, last = (whole_checkpoint(case.folder / f"made-{step}", step) for step in (1, 2))
    store.put("step-1", first)
    store.put("step-2", last)
    for _ in range(2):
        store.remove("step-1")
        expect(store.names() == ["step-2"], "names() after remove('step-1')", store.names(), "['step-2']")
    _expect_store_error("manifest('step-1') after it was removed", lambda: store.manifest("step-1"))
    _expect_store_error("fetch('step-1', ...) after it was removed", lambda: _fetch(case, store, "step-1"))
    expect(_fetch(case, store, "step-2") == _content(last), "fetch('step-2')", "other files", "those that were kept")
    store.put("step-1", last)
    expect(_fetch(case, store, "step-1") == _content(last), "fetch('step-1'), put again", "other files", "the new ones")


class _FakeSnapshot:
    """Counts how it is used."""

    nbytes = 8

    def __init__(self, on_host: bool = False) -> None:
        self.on_host = on_host

    def to_host(self) -> _FakeSnapshot:
        return self if self.on_host else _FakeSnapshot(True)

    def save(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)


@check_for("store")
def snapshots_are_bounded_and_in_order(case: EntryCase) -> None:
    """Oldest first, as many as the bound says, the newest always there; `host` keeps copies in host memory."""
    assert isinstance(case.entry, entries.Store)
    if case.entry.tier not in ("device", "host"):
        raise CheckSkipped(f"a store of the tier {case.entry.tier} keeps no snapshots")
    store = case.build()
    expect(list(store.kept()) == [], "kept() before anything is kept", store.kept(), "nothing")
    most = 0
    for step in range(1, 41):
        store.put(StepSnapshot(step, _FakeSnapshot(), {"step": step}))
        snapshots = list(store.kept())
        steps = [snapshot.step for snapshot in snapshots]
        expect(steps == sorted(set(steps)) and steps[-1] == step, f"kept() after step {step}", steps, "oldest first")
        expect(snapshots[-1].state == {"step": step}, "kept()[-1].state", snapshots[-1].state, f"{{'step': {step}}}")
        if case.entry.tier == "host":
            newest = snapshots[-1].snapshot
            expect(newest.on_host, "kept()[-1].snapshot", "the one on the device", "what to_host() gave")
        most = max(most, len(snapshots))
    expect(most < 40, "kept() after 40 puts", f"{most} snapshots", "a bounded number")
    expect(most == store.most, "most", f"{store.most}, and {most} were kept", "as many as it keeps")


# --- gates ------------------------------------------------------------------------------------------------------------


def _gate_reason(called: str, gate: Any, candidate: Candidate) -> str:
    """What a gate says; an error that a user can act on counts as a reason, any other fails the check."""
    try:
        reason = gate.check(candidate)
    except FinetoothError as error:
        return str(error)
    expect_instance(reason, str, called)
    expect("\n" not in reason, called, repr(reason), "one line")
    return str(reason)


@check_for("gate")
def gate_answers_and_changes_nothing(case: EntryCase) -> None:
    """The same answer twice, on one line; files and the engine are as they were."""
    assert isinstance(case.entry, entries.Gate)
    context = case.context()
    gate = case.build(context)
    engine = FakeEngine(context.tokenizer, context.renderer.stop_ids)
    folder = whole_checkpoint(case.folder / "candidate")
    before = _content(case.folder)
    data = [Datum((TokenChunk(np.arange(6)),), np.arange(1, 7))]
    scores = engine.logprobs(data)[0]
    candidate = Candidate(1, folder, {"loss": 1.5, "eval/loss": 1.5}, engine if case.entry.engine else None)
    first, second = (_gate_reason("check(a whole candidate)", gate, candidate) for _ in range(2))
    expect(first == second, "check(candidate), a second time", repr(second), repr(first))
    expect(_content(case.folder) == before, "check(candidate)", "files changed", "files as they were")
    same = np.array_equal(engine.logprobs(data)[0], scores) and engine.weights_version == 0
    expect(same, "check(candidate)", "the engine changed", "the engine as it was")
    trained = {"forward_backward", "backward", "step"} & set(engine.calls)
    expect(not trained, "check(candidate)", f"called {sorted(trained)}", "nothing that trains")


@check_for("gate")
def gate_survives_a_broken_folder(case: EntryCase) -> None:
    """A folder that is empty, torn or not there gives a reason or lets it pass, on one line, and nothing is written."""
    assert isinstance(case.entry, entries.Gate)
    context = case.context()
    gate = case.build(context)
    engine = FakeEngine(context.tokenizer, context.renderer.stop_ids) if case.entry.engine else None
    empty = case.folder / "empty"
    empty.mkdir()
    torn = whole_checkpoint(case.folder / "torn")
    (torn / MANIFEST).write_bytes(b'{"files": ')
    for folder in (empty, torn, case.folder / "missing"):
        before = _content(case.folder)
        try:
            _gate_reason(f"check(a candidate in {folder.name!r})", gate, Candidate(1, folder, {}, engine))
        except CheckFailed:
            raise
        except Exception:  # what is raised counts as a reason
            pass
        expect(_content(case.folder) == before, f"check({folder.name})", "files changed", "files as they were")
