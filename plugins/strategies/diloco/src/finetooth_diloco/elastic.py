"""Islands that may leave and join between two exchanges."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetooth_hooks import Datum, Forward, LossSpec, Stepped
from finetooth_hooks.engine import Counts, Engine, StepSettings
from safetensors.torch import load, save

from finetooth_diloco.engine import Flying, IslandEngine, Lines
from finetooth_diloco.membership import Meeting, Membership
from finetooth_diloco.options import DilocoOptions
from finetooth_diloco.outer import Exchange, files_of, write_files


@dataclass(frozen=True)
class Sent:
    """What this island gave to the exchange that is under way, in case it has to be sent again.

    Attributes:
        step: after which the exchange began.
        joins: this island gave nothing, and took what the others share.
        moved: the pseudo-gradient, each piece flat.
        first: where it begins in the row of all that trains.
        residual: (N,) what rounding had taken before; None where nothing is rounded, or nothing was yet.
    """

    step: int
    joins: bool
    moved: list[Any]
    first: int
    residual: Any


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
        self._sent: Sent | None = None
        self._settled_as = ""
        self._since = time.monotonic()
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
        self._membership.stepped(time.monotonic() - self._since)
        if self._aim is None:
            self._receive(done.step)
        if done.step == self._aim or (self._aim is None and self._next(done.step - 1) == done.step):
            self._meet(done.step)
        self._since = time.monotonic()
        return done

    def _next(self, step: int) -> int:
        """The step after which the next exchange is."""
        every = self._options.inner_steps // self._options.fragments
        following = (step // every + 1) * every
        return following if self._total is None or step >= self._total else min(following, self._total)

    def _fall_behind(self) -> None:
        self._sent = None
        self._flying.clear()
        newest = self._membership.announce()
        self._aim = self._next(max(newest, self.weights_version))

    def _meet(self, step: int) -> None:
        """Begin an exchange with the islands that are there; those that join take what the others share first."""
        last = step == self._total
        if last:
            self._receive(None)
        joins = self._aim is not None
        fragments = 1 if last else self._options.fragments
        number = (step // (self._options.inner_steps // fragments) - 1) % fragments
        while True:
            meeting = self._membership.meet(step, joins)
            if meeting is None:
                self._fall_behind()
                return
            name = meeting.name  # under which it is settled whether the mean counts
            if not meeting.joining:
                break
            name = f"{meeting.name}/mean"
            try:
                given = meeting.give(self._packed() if meeting.members[0] == self._membership.rank else None)
                came = True
            except RuntimeError:  # of gloo: a member has gone
                came = False
            if self._membership.settle(meeting.name, done=came):
                if joins:
                    self._take(given)
                break
        self._aim = None
        pieces = self._outer.fragment(number, fragments)
        if self._exchange is None:
            self._exchange = Exchange(meeting, self._options.pseudo_gradient_dtype, self._outer.size)
        moved = self._outer.pseudo_gradient(self._own.weights(), pieces)
        if joins:
            moved = [array.zero_() for array in moved]
        self._sent = Sent(step, joins, moved, number * self._outer.size // fragments, self._exchange.residual)
        due = step if last else step + self._options.delay
        self._flying.append(Flying(pieces, due, self._mean_over(meeting, name)))
        self._receive(step, mixing=0.0 if last else None)

    def _mean_over(self, meeting: Meeting, name: str) -> Future[list[Any]]:
        """Send over a meeting's group, while this island trains; those that meet share the rows from now on."""
        assert self._exchange is not None and self._sent is not None
        kept, self._settled_as = self._sent.residual, name
        place = meeting.members.index(self._membership.rank)
        self._lines = replace(self._lines, number=place, islands=len(meeting.members))
        self._exchange.line, self._exchange.residual = meeting, None if kept is None else kept.clone()
        return self._sender.submit(self._exchange.mean, self._sent.moved, self._sent.first)

    def _receive(self, step: int | None, mixing: float | None = None) -> None:
        """Take what is due once it came through at all that take part; if not, those that are left send it again."""
        while self._sent is not None and (step is None or self._flying[0].due <= step):
            flying, sent = self._flying[0], self._sent
            assert flying.mean is not None
            if (error := flying.mean.exception()) is not None and not isinstance(error, RuntimeError):
                raise error
            if self._membership.settle(self._settled_as, done=error is None):
                self._sent = None
                break
            meeting = self._membership.meet(sent.step, sent.joins)
            if meeting is None:
                self._fall_behind()
                return
            flying.mean = self._mean_over(meeting, meeting.name)
        super()._receive(step, mixing)

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
        """The state of this island alone, since others may be at another step. All begin with it when a run resumes.
        What is on its way is in it, unless a member was lost meanwhile."""
        path, flying = Path(path), list(self._flying)
        self._flying = [replace(of, mean=of.mean) for of in flying if of.mean is None or of.mean.exception() is None]
        self._engine.save(path)
        self._write_outer(path, islands=1)
        self._flying = flying  # whether it counts is not settled yet

    def load(self, path: Path) -> None:
        super().load(path)
        self._passed, self._sent = 0, None
        if self._aim is not None:
            self._fall_behind()
