"""Islands that may leave and join between two exchanges."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetooth_hooks import Datum, Forward, LossSpec, Stepped
from finetooth_hooks.engine import Counts, Engine, StepSettings
from safetensors.torch import load, save

from finetooth_diloco.engine import IslandEngine, Lines
from finetooth_diloco.membership import Meeting, Membership
from finetooth_diloco.options import DilocoOptions
from finetooth_diloco.outer import Exchange, files_of, write_files


class ElasticEngine(IslandEngine):
    """An island that others do not wait for longer than their patience.

    One that was left out of an exchange, or is a later process of its rank, passes over its steps until the next
    exchange without computing them. There it takes what the others share, and the first island's optimizer.
    """

    def __init__(
        self, own: Engine, spread: Engine, lines: Lines, membership: Membership, options: DilocoOptions
    ) -> None:
        super().__init__(own, spread, lines, options)
        self._membership = membership
        self._passed = 0
        """Steps passed over since the engine's own count was right."""
        self._aim: int | None = None
        """The step after which this island joins; None while it trains."""
        if membership.joins:
            self._fall_behind()

    @property
    def weights_version(self) -> int:
        return self._engine.weights_version + self._passed

    def forward_backward(self, data: Sequence[Datum], loss: LossSpec, *, normalizer: Counts | None = None) -> Forward:
        done = super().forward_backward(data, loss, normalizer=normalizer)
        return replace(done, metrics={**done.metrics, "diloco/islands": float(self._lines.islands)})

    def _share(self, data: Sequence[Datum]) -> list[Datum]:
        return [] if self._aim is not None else super()._share(data)

    def step(self, *, metrics: Mapping[str, float] | None = None, settings: StepSettings | None = None) -> Stepped:
        self._begun = 0
        if self._aim is None:
            with self._named():
                done = self._engine.step(metrics=metrics, settings=settings)
            self._apart += 1
        else:
            self._engine.zero_grad()
            done = Stepped(self.weights_version + 1, 0.0, 0.0)
            self._passed += 1
        if done.step == self._aim or (self._aim is None and self._next(done.step - 1) == done.step):
            self._meet(done.step)
        return done

    def _next(self, step: int) -> int:
        """The step after which the next exchange is."""
        every = self._options.inner_steps // self._options.fragments
        following = (step // every + 1) * every
        return following if self._total is None or step >= self._total else min(following, self._total)

    def _fall_behind(self) -> None:
        newest = self._membership.announce()
        self._aim = self._next(max(newest, self.weights_version))

    def _meet(self, step: int) -> None:
        """Exchange with the islands that are there."""
        last = step == self._total
        fragments = 1 if last else self._options.fragments
        number = (step // (self._options.inner_steps // fragments) - 1) % fragments
        residual = None if self._exchange is None or self._aim is not None else self._exchange.residual
        while True:
            if self._exchange is not None:  # of a try that failed, nothing stays
                self._exchange.residual = None if residual is None else residual.clone()
            meeting = self._membership.meet(step, self._aim is not None)
            if meeting is None:
                self._fall_behind()
                return
            try:
                given, mean = self._swap(meeting, number, fragments)
                came = True
            except RuntimeError:  # of gloo: a member has gone
                given, mean, came = None, [], False
            if self._membership.settle(meeting.name, done=came):
                break
        if self._aim is not None:
            assert given is not None
            self._take(given)
        pieces, share = self._outer.fragment(number, fragments), 0.0 if last else self._options.mixing
        self._outer.step(mean, pieces)
        self._own.set_weights(self._outer.mixed(self._own.weights(), pieces, share))
        self._apart, self._aim = self._apart if share or fragments > 1 else 0, None
        place = meeting.members.index(self._membership.rank)
        self._lines = replace(self._lines, number=place, islands=len(meeting.members))

    def _swap(self, meeting: Meeting, number: int, fragments: int) -> tuple[bytes | None, list[Any]]:
        """What the first island gave to those that join, and the mean pseudo-gradient of a fragment."""
        given: bytes | None = None
        if meeting.joining:
            given = meeting.give(self._packed() if meeting.members[0] == self._membership.rank else None)
        if self._exchange is None:
            self._exchange = Exchange(meeting, self._options.pseudo_gradient_dtype, self._outer.size)
        self._exchange.line = meeting
        moved = self._outer.pseudo_gradient(self._own.weights(), self._outer.fragment(number, fragments))
        if self._aim is not None:
            moved = [array.zero_() for array in moved]
        return given, self._exchange.mean(moved, number * self._outer.size // fragments)

    def _packed(self) -> bytes:
        """The first island's state, with what all share."""
        with tempfile.TemporaryDirectory(prefix="ft-island-") as folder:
            self.save(Path(folder))
            return save(files_of(Path(folder)))

    def _take(self, packed: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="ft-island-") as folder:
            write_files(load(packed), Path(folder))
            super().load(Path(folder))
        self._passed = 0

    def save(self, path: Path) -> None:
        """The state of this island alone, since others may be at another step. All begin with it when a run resumes."""
        path = Path(path)
        self._engine.save(path)
        self._write_outer(path, islands=1)

    def load(self, path: Path) -> None:
        super().load(path)
        self._passed = 0
        if self._aim is not None:
            self._fall_behind()
