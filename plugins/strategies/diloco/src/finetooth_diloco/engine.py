"""An engine in front of an island's: it trains the island's share of each step, and meets the others after some."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import (
    Datum,
    EngineError,
    Forward,
    Generated,
    LossSpec,
    NotFinite,
    PlanError,
    Sampling,
    Stepped,
    UserError,
)  # fmt: skip
from finetooth_hooks.engine import Counts, Engine, StepSettings
from finetooth_hooks.protocols import Collective
from finetooth_steps.draws import places_of
from finetooth_steps.normalizers import count_normalizers
from finetooth_steps.sharding import FrontEngine, shares
from finetooth_steps.totals import merge_totals
from safetensors.torch import load_file, save_file

from finetooth_diloco.options import DilocoOptions
from finetooth_diloco.outer import Exchange, OuterOptimizer, Piece

OWN = "diloco"
"""Folder in a saved state for what DiLoCo has in addition to the engine of the first island."""
OUTER, ISLANDS = "outer.safetensors", "islands.json"
RESIDUAL = "residual.safetensors"


@dataclass(frozen=True)
class Lines:
    """One rank's lines to others.

    Attributes:
        everyone: to all ranks.
        island: to those of its island.
        between: to the first rank of each other island; None where this is not the first of its own.
        number: of its island, from 0.
        islands: how many there are.
    """

    everyone: Collective
    island: Collective
    between: Collective | None
    number: int
    islands: int


@dataclass(eq=False)
class Flying:
    """A fragment on its way.

    Attributes:
        pieces: what it is of.
        due: the step after which it is taken.
        mean: of all islands' pseudo-gradients, once it is there; None at ranks that do not exchange.
        arrived: the same at every rank of the island.
    """

    pieces: list[Piece]
    due: int
    mean: Future[list[Any]] | None
    arrived: list[Any] | None = None


class IslandEngine(FrontEngine):
    """Algorithm 1 of arXiv:2311.08105 around an engine.

    Every rank is called with the data of a whole step. An island trains whole groups of them; losses are divided by the
    normalizer of the whole step over the number of islands, so that the mean of all islands' gradients is the gradient
    of the step. What is measured or kept between two exchanges is the model that all islands share, the anchor.

    Args:
        own: the engine of this rank, whose weights are read and set.
        spread: the same behind its island.
    """

    def __init__(self, own: Engine, spread: Engine, lines: Lines, options: DilocoOptions) -> None:
        super().__init__(spread)
        self._own, self._lines, self._options = own, lines, options
        self._outer = OuterOptimizer(own.weights(), options.outer_lr, options.outer_momentum)
        self._exchange: Exchange | None = None  # another rank of the island exchanges
        if lines.between is not None:
            self._exchange = Exchange(lines.between, options.pseudo_gradient_dtype, self._outer.size)
        self._total: int | None = None
        self._apart = 0  # steps since all islands had the anchor
        self._flying: list[Flying] = []
        self._sender = ThreadPoolExecutor(1)
        self._shared = False  # the engine holds the anchor for a while
        self._begun = 0  # data of the step so far

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities - {"snapshots", "interrupt", "continuous"}

    @property
    def anchor(self) -> Mapping[str, Any]:
        """What all islands share: the weights of the last exchange, in float32."""
        return self._outer.anchor

    # --- trains -------------------------------------------------------------------------------------------------------

    def forward_backward(self, data: Sequence[Datum], loss: LossSpec, *, normalizer: Counts | None = None) -> Forward:
        """Computes this island's share of the data.

        Returns:
            Loss and metrics of the island's own data, tokens and targets of all.
        """
        data = [replace(d, place=place) for d, place in zip(data, places_of(data, self._begun), strict=True)]
        self._begun += len(data)
        whole = count_normalizers(data) if normalizer is None else normalizer
        counts = {name: value / self._lines.islands for name, value in {"none": 1.0, **whole}.items()}
        mine = self._share(data)
        with self._named():
            done = self._engine.forward_backward(mine, loss, normalizer=counts)
        if done.totals is not None and mine:
            merged = merge_totals([done.totals], count_normalizers(mine))
            done = replace(done, loss=merged.loss, components=merged.components)
        sent = {} if self._exchange is None else {"diloco/sent": float(self._exchange.sent)}
        tokens = sum(len(datum) for datum in data)
        return replace(
            done, outputs=(), metrics={**done.metrics, **sent}, tokens=tokens,
            padded=round(done.padded * tokens / done.tokens) if done.tokens else tokens,
            targets=sum(int(datum.mask.sum()) for datum in data),
        )  # fmt: skip

    def _share(self, data: Sequence[Datum]) -> list[Datum]:
        """What of a step's data this island trains."""
        return [data[at] for at in shares(data, self._lines.islands)[self._lines.number]]

    def step(self, *, metrics: Mapping[str, float] | None = None, settings: StepSettings | None = None) -> Stepped:
        self._begun = 0
        with self._named():
            done = self._engine.step(metrics=metrics, settings=settings)
        self._apart += 1
        options, last = self._options, done.step == self._total
        every = options.inner_steps // options.fragments
        if last:
            self._receive(None)
            self._send(0, 1, done.step)
            self._receive(None, mixing=0.0)
        else:
            if done.step % every == 0:
                self._send((done.step // every - 1) % options.fragments, options.fragments, done.step + options.delay)
            self._receive(done.step)
        return done

    def _send(self, number: int, fragments: int, due: int) -> None:
        """Give one of so many fragments' pseudo-gradient to the other islands, while this one trains on."""
        self._agree("exchanges what it trained")
        pieces, exchange = self._outer.fragment(number, fragments), self._exchange
        mean: Future[list[Any]] | None = None
        weights = self._own.weights()  # every rank of an island asks, since each may hold a part
        if exchange is not None:
            moved = self._outer.pseudo_gradient(weights, pieces)
            mean = self._sender.submit(exchange.mean, moved, number * self._outer.size // fragments)
            if due <= self._engine.weights_version:
                mean.exception()  # nothing is trained meanwhile
        self._flying.append(Flying(pieces, due, mean))

    def _receive(self, step: int | None, mixing: float | None = None) -> None:
        """Take what has arrived by a step (None: all of it) into the anchor, and the anchor into this island."""
        arrived = [flying for flying in self._flying if step is None or flying.due <= step]
        for flying in arrived:
            self._outer.step(self._mean(flying), flying.pieces)
            share = self._options.mixing if mixing is None else mixing
            self._own.set_weights(self._outer.mixed(self._own.weights(), flying.pieces, share))
            self._flying.remove(flying)
            if share == 0 and self._outer.is_whole(flying.pieces):
                self._apart = 0

    def _mean(self, flying: Flying) -> list[Any]:
        """The mean pseudo-gradient of all islands, once it is there."""
        if flying.arrived is not None:
            return flying.arrived
        gradient = None if flying.mean is None else flying.mean.result()
        if self._lines.island.world > 1:
            arrays = None if gradient is None else [array.cpu().numpy() for array in gradient]
            like = next(iter(self._outer.anchor.values()))
            gradient = [_like(array, like) for array in self._lines.island.broadcast(arrays)]
        assert gradient is not None
        if not all(bool(array.isfinite().all()) for array in gradient):
            raise EngineError(
                f"diloco: the mean of what islands sent as {self._options.pseudo_gradient_dtype} is not finite",
                action="set scale.strategy.pseudo_gradient_dtype: fp32, or lower optimizer.learning_rate",
            )
        flying.arrived = gradient
        return gradient

    def _agree(self, does: str) -> None:
        """
        Raises:
            EngineError: another rank does something else now, such as to save because it was interrupted.
        """
        own = (does, self._engine.weights_version)
        for rank, other in enumerate(self._lines.everyone.gather(own)):
            if tuple(other) != own:
                raise EngineError(
                    f"rank {rank} {other[0]} after step {other[1]}, rank {self._lines.everyone.rank} {does} after step "
                    f"{own[1]}: islands are not at the same step between two exchanges",
                    action="give checkpoint.every in steps; after an interrupt, continue with ft resume",
                )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Only one island knows of a bad step, so the others cannot pass over it as well.

        Raises:
            EngineError: something is not finite.
        """
        try:
            yield
        except NotFinite as error:
            raise EngineError(f"island {self._lines.number}: {error.problem}", action=error.action) from error

    # --- what all islands share ---------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        """Generates with the inner engine while all islands have the same weights.

        Raises:
            PlanError: islands train apart, so each would sample, and train, something else; before the first step.
        """
        if not self._shared and (self._apart or self._options.inner_steps > 1):
            raise PlanError(
                "diloco: islands would sample different completions between two exchanges",
                action="choose a method that does not sample, inner_steps: 1 of scale.strategy, or scale.strategy: ddp",
            )
        return self._engine.generate(prompts, sampling)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the `with` block, the engine has the anchor."""
        if self._shared:
            yield
            return
        own = {name: weight.detach().clone() for name, weight in self._own.weights().items()} if self._apart else {}
        if own:
            self._own.set_weights(self._outer.anchor)
        self._shared = True
        try:
            yield
        finally:
            if own:
                self._own.set_weights(own)
            self._shared = False

    def export(self, path: Path) -> None:
        with self.averaged():
            self._engine.export(path)

    def set_total_steps(self, total: int | None) -> None:
        self._total = total
        self._engine.set_total_steps(total)

    def zero_grad(self) -> None:
        self._begun = 0
        self._engine.zero_grad()

    def restore(self, path: Path) -> None:
        """All islands begin from the artifact."""
        self._engine.restore(path)
        self._begin_anew()

    # --- keep ---------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """The first island's state as any engine writes it, and what DiLoCo adds to it, in `diloco/`: the outer
        optimizer's state, and of each other island its state and what rounding took from it. Every rank writes all
        of it, since each may be asked to load it."""
        self._agree("saves")
        for flying in self._flying:
            self._mean(flying)  # what rounding took is known then
        path = Path(path)
        own = path / OWN / f"island-{self._lines.number}"
        self._engine.save(own)
        if self._exchange is not None and self._exchange.residual is not None:
            save_file({"residual": self._exchange.residual.contiguous()}, own / RESIDUAL)
        files = None
        if self._lines.between is not None:
            files = {str(file.relative_to(own)): file.read_bytes() for file in sorted(own.rglob("*")) if file.is_file()}
        states = [of_rank for of_rank in self._lines.everyone.gather(files) if of_rank is not None]
        for number, of_island in enumerate(states):
            folder = path / OWN / f"island-{number}"
            for name, content in of_island.items():
                target = path / name if number == 0 and name != RESIDUAL else folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        for name in states[0] if self._lines.number == 0 else ():
            if name != RESIDUAL:
                (own / name).unlink()
        self._write_outer(path, self._lines.islands)

    def _write_outer(self, path: Path, islands: int) -> None:
        """What all islands share, and of how many a state is."""
        outer = {f"anchor.{name}": array for name, array in self._outer.anchor.items()}
        outer |= {f"momentum.{name}": array for name, array in self._outer.momentum.items()}
        for at, flying in enumerate(self._flying):
            outer |= {f"flying.{at}.{place}": array for place, array in enumerate(self._mean(flying))}
        (path / OWN).mkdir(parents=True, exist_ok=True)
        save_file({name: array.contiguous() for name, array in outer.items()}, path / OWN / OUTER)
        under_way = [[flying.due, [asdict(piece) for piece in flying.pieces]] for flying in self._flying]
        record = {"islands": islands, "apart": self._apart, "flying": under_way}
        (path / OWN / ISLANDS).write_text(json.dumps(record) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """A state that another strategy wrote is what all islands begin from. One of another number of islands gives
        each the state of one of those.

        Raises:
            UserError: what DiLoCo wrote does not fit.
        """
        path = Path(path)
        self._begun = 0
        if not (path / OWN / ISLANDS).is_file():
            self._engine.load(path)
            self._begin_anew()
            return
        record = json.loads((path / OWN / ISLANDS).read_text(encoding="utf-8"))
        number = self._lines.number % int(record["islands"])
        own = path / OWN / f"island-{number}"
        outer = load_file(path / OWN / OUTER)
        means = {name: outer.pop(name) for name in list(outer) if name.startswith("flying.")}
        if set(outer) != {f"{of}.{name}" for of in ("anchor", "momentum") for name in self._outer.anchor}:
            raise UserError(
                f"{path / OWN / OUTER}: it is of other weights", action="resume with the adapter of the run"
            )
        self._engine.load(own if number else path)
        for name, anchor in self._outer.anchor.items():
            anchor.copy_(outer[f"anchor.{name}"])
            self._outer.momentum[name].copy_(outer[f"momentum.{name}"])
        self._apart = int(record["apart"])
        device = next(iter(self._outer.anchor.values())).device
        self._flying = [
            Flying(
                [Piece(**piece) for piece in pieces], due, None,
                [means[f"flying.{at}.{place}"].to(device) for place in range(len(pieces))],
            )
            for at, (due, pieces) in enumerate(record.get("flying", ()))
        ]  # fmt: skip
        if self._exchange is not None:
            residual = load_file(own / RESIDUAL)["residual"] if (own / RESIDUAL).is_file() else None
            first = next(iter(self._outer.anchor.values()))
            self._exchange.residual = None if residual is None else residual.to(first.device)

    def _begin_anew(self) -> None:
        """The outer optimizer begins with the weights that the engine has now."""
        self._outer = OuterOptimizer(self._own.weights(), self._options.outer_lr, self._options.outer_momentum)
        self._apart, self._flying = 0, []


def _like(array: np.ndarray[Any, Any], anchor: Any) -> Any:
    """An array as one of the anchor's library, where the anchor lies."""
    return anchor.new_tensor(array)
