"""Weights that are combined for sampling: adapters of the command line, and sums of several."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks import UserError
from finetooth_hooks.compute.held import Stack
from finetooth_hooks.faces import StackPart
from sqlalchemy import Row

from finetooth_server.faults import Unknown
from finetooth_server.keeping.checkpoints import WEIGHTS, Checkpoints
from finetooth_server.sections import on_one_device
from finetooth_server.settings import Settings

MARK = "stack:"
"""Prefix of a stack's id, in the place of a sampler's checkpoint id."""

UNUSED = 3600.0
"""Seconds to keep a stack without a sampler: one may be about to come."""


@dataclass(frozen=True)
class Weights:
    """The weights of a sampling call.

    Attributes:
        recipe: of an engine that holds them.
        stack: artifacts with their weights; empty: the unchanged base.
    """

    recipe: Mapping[str, Any]
    stack: Stack

    @property
    def folder(self) -> Path | None:
        """The artifact, for an engine that loads it as its own weights.

        Raises:
            UserError: it is a sum of several.
        """
        if not self.stack:
            return None
        ((folder, weight), *others) = self.stack
        if others or weight != 1.0:
            raise UserError(
                "a sum of adapters: one of them is more than a low-rank addition to linear modules, or more is asked "
                "than the completions and their log-probabilities",
                action="ask each adapter by itself",
            )
        return folder


class Stacks:
    """The requested stacks. Each is a file named by its content, so a waiting call finds it after a restart.

    Args:
        settings: the adapters of the command line, and the folder of the server.
    """

    def __init__(self, settings: Settings, checkpoints: Checkpoints) -> None:
        self._settings, self._checkpoints = settings, checkpoints
        self._folder = settings.folder / "stacks"

    def write(self, tenant: str, parts: Sequence[StackPart]) -> str:
        """The id of a stack; the same parts again give the same.

        Raises:
            Unknown: an unknown part.
            UserError: the parts have different bases.
        """
        self._base(tenant, parts)
        text = json.dumps([[part.adapter, part.checkpoint, part.weight] for part in parts])
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{digest}.json"
        if path.exists():
            path.touch()
        else:
            beside = path.with_suffix(".part")
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        return MARK + digest

    def sweep(self, named: Collection[str | None]) -> None:
        """Remove the stacks without a sampler.

        Args:
            named: checkpoint ids of all samplers.
        """
        for path in self._folder.glob("*.json"):
            if MARK + path.stem not in named and time.time() - path.stat().st_mtime > UNUSED:
                path.unlink(missing_ok=True)

    def base(self, tenant: str, id_: str) -> str:
        """Name of the base of a checkpoint or a stack.

        Raises:
            Unknown: this tenant has no such adapter or checkpoint.
        """
        if not id_.startswith(MARK):
            return self._checkpoints.readable(tenant, id_).base
        return self._base(tenant, self._parts(id_))

    def weights(self, row: Row[Any]) -> Weights:
        """The weights of a sampler.

        Args:
            row: of the table of samplers.

        Raises:
            FinetoothError: they no longer exist.
        """
        if row.checkpoint is None:
            return Weights(on_one_device(self._settings.models[row.base]), ())
        if not row.checkpoint.startswith(MARK):
            checkpoint = self._checkpoints.readable(row.tenant, row.checkpoint)
            return Weights(on_one_device(checkpoint.recipe), ((self._checkpoints.folder(checkpoint, WEIGHTS), 1.0),))
        parts = [self._part(row.tenant, part) for part in self._parts(row.checkpoint)]
        folders = [
            (folder, part.weight) for (_, _, folder), part in zip(parts, self._parts(row.checkpoint), strict=True)
        ]
        return Weights(parts[0][1], tuple(folders))

    def _base(self, tenant: str, parts: Sequence[StackPart]) -> str:
        bases = {self._part(tenant, part)[0]: part for part in parts}
        if len(bases) > 1:
            (base, part), (other, another), *_ = bases.items()
            raise UserError(
                f"{_name(part)} adds to {base}, and {_name(another)} to {other}", action="stack adapters of one base"
            )
        return next(iter(bases))

    def _part(self, tenant: str, part: StackPart) -> tuple[str, Mapping[str, Any], Path]:
        """Base, recipe and artifact."""
        if part.checkpoint:
            checkpoint = self._checkpoints.readable(tenant, part.checkpoint)
            return checkpoint.base, on_one_device(checkpoint.recipe), self._checkpoints.folder(checkpoint, WEIGHTS)
        known = self._settings.adapters.get(part.adapter)
        if known is None:
            raise Unknown(f"no adapter {part.adapter!r} is served here", action="list the models that there are")
        return known.base, known.recipe, known.folder

    def _parts(self, id_: str) -> list[StackPart]:
        try:
            text = (self._folder / f"{Path(id_.removeprefix(MARK)).name}.json").read_text(encoding="utf-8")
        except OSError as error:
            raise Unknown(f"no checkpoint {id_!r}", action="list the checkpoints that there are") from error
        return [StackPart(adapter, checkpoint, weight) for adapter, checkpoint, weight in json.loads(text)]


def _name(part: StackPart) -> str:
    return part.adapter or f"checkpoint {part.checkpoint}"
