"""Finds the newest complete checkpoint for a run to resume from, and the differences since then."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.checkpoints import Store
from finetooth_hooks.errors import FinetoothError, UserError
from finetooth_hooks.plan import Plan

from finetooth_saving import history, run_state
from finetooth_saving.artifact import read_manifest, verify_folder
from finetooth_saving.history import History
from finetooth_saving.keeper import Keeping
from finetooth_saving.names import name_of, newest_first, step_of
from finetooth_saving.quarantine import set_aside
from finetooth_saving.run_state import RunState

STAGED = ".step-*"
"""Hidden folders that a killed process may have left."""


class NoCheckpoint(UserError):
    """A run has not saved anything."""


class OtherRun(UserError):
    """A checkpoint is of another run."""


@dataclass(frozen=True)
class Resumable:
    """A checkpoint to resume from, with every file checked.

    Attributes:
        folder: its path.
        plan: the content of its `plan.json`.
        recipe: its `recipe.yaml`.
    """

    folder: Path
    manifest: Mapping[str, Any]
    state: RunState
    history: History
    plan: Mapping[str, Any]

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"


def newest_good(
    keeping: Keeping, run: str, say: Callable[[str], None], at: int | None = None, *, sends: bool = True
) -> Resumable:
    """The newest complete checkpoint of a run, from the disk, else from a remote store. Damaged ones are set aside and
    reported; those of another run are reported.

    Args:
        run: id of the run; empty if unknown.
        at: its required step; None is the newest. Newer checkpoints are set aside, since the run will no longer pass
            through them.
        sends: the run will send new checkpoints to these remote stores.

    Raises:
        NoCheckpoint: the run has no checkpoint.
        UserError: no checkpoint is complete, or a remote store has newer ones than `at`.
    """
    keeping.folder.mkdir(parents=True, exist_ok=True)
    for left in keeping.folder.glob(STAGED):  # a partial checkpoint of a killed process
        shutil.rmtree(left, ignore_errors=True)
    if at is not None and sends:
        _check_remote_ends_at(keeping, at)
    passed = 0
    for name, stores in _candidates(keeping, at):
        for store in stores:
            try:
                folder = keeping.folder / name if store is None else fetch(store, name, keeping.folder)
                checkpoint = read(folder, run)
            except FinetoothError as error:
                passed += 1
                stays = store is not None or isinstance(error, OtherRun)
                where = "" if stays else _set_aside(keeping.folder / name, str(error))
                say(f"{name} cannot be used: {error.problem}{where}")
                continue
            if at is not None:
                _set_newer_aside(keeping.folder, at, say)
            return checkpoint
    wanted = "" if at is None else f" after step {at}"
    if not passed:
        raise NoCheckpoint(f"{keeping.folder} holds no checkpoint{wanted}", action="see: ft checkpoint list")
    raise UserError(
        f"{keeping.folder}: no checkpoint{wanted} is whole, {passed} cannot be used",
        action="start a new run with another output",
    )


def newest_step(keeping: Keeping) -> int:
    """The step of the newest checkpoint, complete or not; -1 if the stores have none or cannot be read."""
    try:
        names = [name for name, _ in _candidates(keeping, None)] if keeping.folder.is_dir() or keeping.remote else []
    except FinetoothError:
        names = []
    return max((step_of(name) or 0 for name in names), default=-1)


def read(folder: Path, run: str = "") -> Resumable:
    """Read a checkpoint and check every file.

    Raises:
        UserError: the checkpoint is damaged, or of another run.
    """
    manifest = verify_folder(folder)
    if manifest.get("kind") != "checkpoint":
        raise UserError(f"{folder} is not a checkpoint", action="give a run folder or a folder in its checkpoints")
    if run and manifest.get("run") != run:
        raise OtherRun(f"{folder} is a checkpoint of another run", action="move it away")
    state = run_state.read(folder / run_state.FILE)
    if state.step != manifest.get("step") or name_of(state.step) != folder.name:
        raise UserError(f"{folder} holds step {state.step}, but its name says another", action="remove it")
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'plan.json'} cannot be read: {error}", action="use another checkpoint") from error
    return Resumable(folder, manifest, state, history.read(folder / history.FILE), plan)


def fetch(store: Store, name: str, folder: Path) -> Path:
    """Download a checkpoint from a remote store; it gets its name only when it is complete.

    Raises:
        FinetoothError: the download failed, or the files are damaged.
    """
    target = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    read_manifest(store.manifest(name), f"{store.place}/{name}")  # before downloading large files
    beside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
    try:
        store.fetch(name, beside)
        verify_folder(beside)
        if target.exists():
            set_aside(target, name, f"replaced by the one from {store.place}")
        beside.chmod(0o755)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def differences(before: Mapping[str, Any], now: Plan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Decisions that differ from the plan of a checkpoint: different data, and parts that compute differently, both as
    `setting: before -> now`."""
    old = {decision["setting"]: decision["value"] for decision in before.get("decisions", ())}
    new = {decision.setting: json.loads(json.dumps(decision.value, default=str)) for decision in now.decisions}
    data, parts = [], []
    for setting in sorted(old.keys() & new.keys()):
        if old[setting] == new[setting]:
            continue
        change = f"{setting}: {old[setting]} -> {new[setting]}"
        if (setting.startswith("data.") and setting.endswith(".sha256")) or setting == "data.snapshot":
            data.append(change)
        elif setting.startswith("backend.") or setting == "hardware":
            parts.append(change)
    return tuple(data), tuple(parts)


def versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Changed versions and environment, `torch: 2.12.0 -> 2.13.0`; local plugin files are in `content_changes`.

    Args:
        before: of the manifest: `plugins`, `environment`.
        now: the same values of this process.
    """
    changes = []
    for group in ("environment", "plugins"):
        old, new = (_by_file_name(of.get(group, {})) for of in (before, now))
        changes += [
            f"{name}: {old[name]} -> {new[name]}"
            for name in sorted(old)
            if name in new and old[name] != new[name] and not (_is_file(old[name]) and _is_file(new[name]))
        ]
    return tuple(changes)


def _by_file_name(versions: Mapping[str, str]) -> dict[str, str]:
    """Versions with a local file under its file name only, since the beginning of its path varies between starts. Files
    of one name are one entry with all their digests."""
    made: dict[str, str] = {}
    for name, version in sorted(versions.items(), key=lambda item: item[1]):
        name = name.rpartition("/")[2] if _is_file(version) else name
        made[name] = f"{made[name]}, {version}" if name in made else version
    return made


def _is_file(version: str) -> bool:
    """Whether the version of a plugin is the digest of a local file."""
    return version.startswith("sha256:")


def content_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Changed files: of the base model, of settings, of models other than the policy, and local plugin files.

    Args:
        before: the manifest of a checkpoint.
        now: hashes in the form of a manifest: `base`, `named`, `plugins`.
    """
    changes = []
    for group, words in (("base", "base model, "), ("named", "content of ")):
        old, new = before.get(group, {}), now.get(group, {})
        changes += [
            f"{words}{name}: {old[name][:12]} -> {new.get(name, 'not there')[:12]}"
            for name in sorted(old)
            if new.get(name) != old[name] and (group == "base" or name in new)
        ]
    old, new = (_by_file_name(of.get("plugins", {})) for of in (before, now))
    changes += [
        re.sub(r"sha256:(\w{12})\w*", r"\1", f"content of plugin {name}: {old[name]} -> {new[name]}")
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name] and _is_file(old[name]) and _is_file(new[name])
    ]
    return tuple(changes)


def _candidates(keeping: Keeping, at: int | None) -> Iterator[tuple[str, list[Store | None]]]:
    """Names of checkpoints, newest first, each with the stores that have it; None is the disk."""
    places: dict[str, list[Store | None]] = {}
    for path in keeping.folder.iterdir() if keeping.folder.is_dir() else ():
        if path.is_dir() and step_of(path.name) is not None:
            places.setdefault(path.name, []).append(None)
    for store in keeping.remote:
        try:
            names = store.names()
        except FinetoothError:
            if not places:
                raise
            continue  # the checkpoint on disk is enough
        for name in names:
            places.setdefault(name, []).append(store)
    for name in newest_first(places):
        if at is None or step_of(name) == at:
            yield name, places[name]


def _check_remote_ends_at(keeping: Keeping, at: int) -> None:
    """Refuse to resume from a step if a remote store has later ones, which its readers would take for this run's.

    Raises:
        UserError: a remote store has checkpoints after `at`.
        StoreError: the store cannot list its checkpoints.
    """
    for store in keeping.remote:
        newer = [name for name in newest_first(store.names()) if (step_of(name) or 0) > at]
        if newer:
            raise UserError(
                f"{store.place} already holds {', '.join(newer)}; a run that resumes from step {at} would mix with "
                f"{'them' if len(newer) > 1 else 'it'}",
                action="send new checkpoints elsewhere, checkpoint.stores='[disk, URL]', or remove those there",
            )


def _set_newer_aside(folder: Path, at: int, say: Callable[[str], None]) -> None:
    """Set newer checkpoints aside, so that they are not taken for later steps of the resumed run."""
    for name in newest_first(path.name for path in folder.iterdir() if path.is_dir()):
        if (step_of(name) or 0) > at:
            say(f"{name} is in {set_aside(folder / name, name, f'the run went on from step {at}')}")


def _set_aside(folder: Path, reason: str) -> str:
    try:
        return f"; it is in {set_aside(folder, folder.name, reason)}"
    except OSError:
        return ""
