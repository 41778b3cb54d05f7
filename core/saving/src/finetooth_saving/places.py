"""Checkpoints of a place, on disk or in a remote store, for commands."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetooth_hooks.checkpoints import Store
from finetooth_hooks.errors import FinetoothError, StoreError, UserError
from finetooth_toolbox.files.manifests import MANIFEST, listed_files

from finetooth_saving import quarantine, run_state
from finetooth_saving.artifact import read_manifest, verify_folder
from finetooth_saving.names import FOLDER, name_of, newest_first, split_url, step_of
from finetooth_saving.run_folder import is_begun, no_such_run, run_at


@dataclass(frozen=True)
class Place:
    """A place with checkpoints.

    Attributes:
        name: for messages.
        folder: on this machine; None for a remote store.
        store: the remote store; None on this machine.
        only: the name of the only requested checkpoint.
    """

    name: str
    folder: Path | None = None
    store: Store | None = None
    only: str = ""

    def names(self, *, none: bool = False) -> list[str]:
        """Names of checkpoints, newest first.

        Args:
            none: an empty result is allowed.

        Raises:
            FinetoothError: the place has no checkpoint.
        """
        if self.only:
            return [self.only]
        if self.store is not None:
            newest = newest_first(self.store.names())
        else:
            assert self.folder is not None
            newest = newest_first(path.name for path in self.folder.iterdir() if path.is_dir())
        if not newest and not none:
            elsewhere = "check the URL: it is the one in checkpoint.stores"
            action = elsewhere if self.store is not None else "give a run folder, or set checkpoint.every"
            if aside := len(self.set_aside()):
                action = f"{aside} in quarantine, and why: ft checkpoint list {self.name}"
            raise UserError(f"{self.name} holds no checkpoint", action=action)
        return newest

    def set_aside(self) -> Mapping[str, str]:
        """Checkpoints in quarantine: the reason by name."""
        return {} if self.folder is None or self.only else quarantine.reasons(self.folder)

    def manifest(self, name: str) -> Mapping[str, Any]:
        """The manifest of a checkpoint, its own SHA-256 checked.

        Raises:
            FinetoothError: the manifest cannot be read, or was changed.
        """
        if self.store is not None:
            return read_manifest(self.store.manifest(name), f"{self.store.place}/{name}")
        assert self.folder is not None
        try:
            text = (self.folder / name / MANIFEST).read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.folder / name}: {MANIFEST} cannot be read: {error.strerror}", action="use another checkpoint"
            ) from error
        return read_manifest(text, str(self.folder / name))

    @contextmanager
    def whole(self, name: str) -> Iterator[Path]:
        """A folder with the files of a checkpoint; those of a remote store are downloaded for the duration of the
        context.

        Raises:
            FinetoothError: the files cannot be downloaded.
        """
        if self.store is None:
            assert self.folder is not None
            yield self.folder / name
            return
        with tempfile.TemporaryDirectory(prefix="finetooth-") as scratch:
            self.store.fetch(name, Path(scratch))
            yield Path(scratch)

    def verify(self, name: str) -> str:
        """The fault of a checkpoint; empty if every file is unchanged since it was written."""
        try:
            with self.whole(name) as folder:
                manifest = verify_folder(folder)
                state = run_state.read(folder / run_state.FILE) if manifest.get("kind") == "checkpoint" else None
        except FinetoothError as error:
            return error.problem
        if state is not None and state.step != manifest.get("step"):
            return f"{run_state.FILE} is of step {state.step}, the manifest of step {manifest.get('step')}"
        return ""

    def remove(self, name: str) -> None:
        """Remove a checkpoint.

        Raises:
            StoreError: the checkpoint cannot be removed.
        """
        if self.store is not None:
            self.store.remove(name)
            return
        import shutil

        assert self.folder is not None
        aside = self.folder / f".{name}.gone"
        try:
            (self.folder / name).rename(aside)  # complete or absent, even if this is interrupted
            shutil.rmtree(aside)
        except OSError as error:
            raise StoreError(str(self.folder), f"{name} cannot be removed: {error.strerror}") from error


def place_of(reference: str, opened: Callable[[str], Store], disk: Callable[[Path], Path | None]) -> Place:
    """The place of a reference: a run folder or a run's name under `runs/`, its `checkpoints`, one checkpoint in them,
    or a URL.

    Args:
        opened: returns the store of a URL.
        disk: returns the folder of a run's checkpoints according to its recipe; None if the recipe has none.

    Raises:
        UserError: the reference does not exist or has no checkpoints.
    """
    if "://" in reference:
        url, step = split_url(reference)
        store = opened(url)
        if step is not None and name_of(step) not in (there := newest_first(store.names())):
            action = f"there are: {', '.join(there)}" if there else "check the URL: it is the one in checkpoint.stores"
            raise UserError(f"{url} has no {name_of(step)}", action=action)
        return Place(reference, store=store, only="" if step is None else name_of(step))
    path = Path(reference)
    if not path.exists():
        path = run_at(reference, is_begun) or path
        reference = str(path)
    if (path / FOLDER).is_dir():
        return Place(reference, folder=path / FOLDER)
    if is_begun(path) and step_of(path.name) is None:
        folder = disk(path)
        if folder is not None and folder.is_dir():
            return Place(str(folder), folder=folder)
    if (path / MANIFEST).is_file() or (path.is_dir() and step_of(path.name) is not None):
        return Place(reference, folder=path.parent, only=path.name)
    if path.is_dir() and newest_first(entry.name for entry in path.iterdir() if entry.is_dir()):
        return Place(reference, folder=path)
    if not path.is_dir():
        raise no_such_run(reference)
    action = "give a run folder, one of its checkpoints, or a URL"
    raise UserError(f"{reference}: the folder holds no checkpoints", action=action)


@dataclass(frozen=True)
class Difference:
    """The differences between two checkpoints.

    Attributes:
        files: `FILE: changed`, `only in A`, `only in B`.
        facts: differences of their manifests, `step: 5 -> 10`.
    """

    files: tuple[str, ...] = field(default=())
    facts: tuple[str, ...] = field(default=())


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
    """Compare two manifests."""
    import json

    first, second = (listed_files(json.dumps(manifest).encode()) for manifest in (a, b))
    files = []
    for name in sorted(first.keys() | second.keys()):
        if name not in second:
            files.append(f"{name}: only in the first")
        elif name not in first:
            files.append(f"{name}: only in the second")
        elif first[name].sha256 != second[name].sha256:
            files.append(f"{name}: differs")
    facts = []
    flat_a, flat_b = (dict(_flat({k: v for k, v in m.items() if k not in ("files", "sha256")})) for m in (a, b))
    for key in sorted(flat_a.keys() | flat_b.keys()):
        if flat_a.get(key) != flat_b.get(key):
            facts.append(f"{key}: {flat_a.get(key, '-')} -> {flat_b.get(key, '-')}")
    return Difference(tuple(files), tuple(facts))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
