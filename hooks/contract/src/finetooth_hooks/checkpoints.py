"""Stores keep checkpoints; gates decide whether a checkpoint counts.

A checkpoint is a folder with a manifest, named `step-N`:

    engine/          what `Engine.save` wrote
    state.json       where the run was: cursors, plugin states, metrics, random states
    history.jsonl    every step and evaluation reported so far, one a line
    recipe.yaml      the recipe
    plan.json        what was decided
    manifest.json    the size and SHA-256 of each file, versions, hashes of data and base model, and its own SHA-256

It is written next to its final place, checked by gates, and then renamed. So a folder with its final name and its
manifest is complete and has passed its gates. Stores keep checkpoints in one of four tiers: `device` and `host` hold
snapshots in memory (`SnapshotStore`), `disk` and `remote` hold folders (`Store`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from finetooth_hooks.engine import Engine, Snapshot


@dataclass(frozen=True)
class Candidate:
    """A checkpoint to be promoted; it is complete, but not yet in its place.

    Attributes:
        step: optimizer steps done.
        folder: of its files until then.
        metrics: the last value of every metric, `loss`, `eval/loss`.
        engine: in the saved state; only for gates that declare that they need it.
    """

    step: int
    folder: Path
    metrics: Mapping[str, float] = field(default_factory=dict)
    engine: Engine | None = None


class Gate(Protocol):
    """A check that a checkpoint must pass before it is promoted."""

    def check(self, candidate: Candidate) -> str:
        """Why it must not be promoted, in one line; empty if it passes.

        An exception counts as a reason too. Called in the saving thread, while training continues; a gate that needs
        the engine is called between two steps.
        """
        ...


class Store(Protocol):
    """A tier that keeps folders: `disk` and `remote`. Names are single path parts (`step-40`).

    Calls come from one thread at a time. A failed operation raises `StoreError`.
    """

    @property
    def place(self) -> str:
        """The folder or URL, for people; no secrets in it."""
        ...

    def names(self) -> list[str]:
        """Names of the complete folders in the store, in any order."""
        ...

    def manifest(self, name: str) -> bytes:
        """The content of its `manifest.json`, not checked.

        Raises:
            StoreError: there is none.
        """
        ...

    def put(self, name: str, folder: Path) -> None:
        """Store a copy of a complete folder, the manifest last; on return, the SHA-256 of every stored file has been
        checked against the manifest. Existing files with the same content are not sent again.

        Raises:
            StoreError: it could not be stored, after the store's own retries; it differs from its manifest; or another
                checkpoint has this name (remove that one first). No complete checkpoint was changed.
        """
        ...

    def fetch(self, name: str, folder: Path) -> None:
        """Copy a checkpoint into `folder`, which exists and is empty. The caller checks it against the manifest.

        Raises:
            StoreError: it is missing, or could not be read, after the store's own retries.
        """
        ...

    def remove(self, name: str) -> None:
        """Remove a checkpoint, its manifest first, so that a half-removed one never counts as complete. Nothing happens
        if it is missing.

        Raises:
            StoreError: it could not be removed.
        """
        ...


@dataclass(frozen=True)
class StepSnapshot:
    """A snapshot, with the core's part.

    Attributes:
        step: optimizer steps done.
        snapshot: of the engine.
        state: the content of `state.json`; `values` has the arrays of the method's state, if any.
    """

    step: int
    snapshot: Snapshot
    state: Mapping[str, Any]


class SnapshotStore(Protocol):
    """A tier that keeps snapshots in memory: `device` and `host`."""

    @property
    def most(self) -> int:
        """The most snapshots that it keeps; plans count all their memory."""
        ...

    def put(self, kept: StepSnapshot) -> None:
        """Keep it, and drop the oldest beyond the store's limit. `host` is called in the saving thread and copies
        there."""
        ...

    def kept(self) -> Sequence[StepSnapshot]:
        """The kept snapshots, oldest first."""
        ...


__all__ = [
    "Candidate",
    "Gate",
    "StepSnapshot",
    "SnapshotStore",
    "Store",
]


class CheckpointPlace(Protocol):
    """Checkpoints of a run, in a folder, or elsewhere.

    Attributes:
        name: for people.
        only: the named checkpoint; empty: all of them.
    """

    @property
    def name(self) -> str: ...
    @property
    def only(self) -> str: ...

    def names(self, *, none: bool = False) -> list[str]:
        """Names of checkpoints, newest first.

        Args:
            none: accept that there is none.

        Raises:
            UserError: there is none.
        """
        ...

    def set_aside(self) -> Mapping[str, str]:
        """Checkpoints in quarantine, by name, with the reason."""
        ...

    def manifest(self, name: str) -> Mapping[str, Any]:
        """The manifest of a checkpoint, its own SHA-256 checked.

        Raises:
            FinetoothError: it cannot be read, or was changed.
        """
        ...

    def whole(self, name: str) -> AbstractContextManager[Path]:
        """A folder with the files of a checkpoint; remote files are fetched while it is used.

        Raises:
            FinetoothError: they cannot be fetched.
        """
        ...

    def verify(self, name: str) -> str:
        """The problem with a checkpoint; empty if every file is unchanged."""
        ...

    def remove(self, name: str) -> None:
        """Remove a checkpoint.

        Raises:
            StoreError: it cannot be removed.
        """
        ...
