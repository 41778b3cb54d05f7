"""An engine in front of one rank's engine: it is called with the data of a whole step, and trains its share of them.

Every rank runs the same recipe and the same method, so every rank makes the same calls with the same data. Each trains
whole groups that stand next to each other, as evenly as their number goes; normalizers, reports and losses are those of
the whole step. A handle names the shares of all ranks. What does not train (scores, evaluations, samples) is divided as
well, and all ranks get all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from finetooth_hooks import (
    Backward,
    Datum,
    EngineBase,
    EngineError,
    EngineInfo,
    Forward,
    Generated,
    Handle,
    LossSpec,
    Sampling,
    Stepped,
)
from finetooth_hooks.compute.collectives import Collective, is_first
from finetooth_hooks.compute.loss_totals import LossTotals
from finetooth_hooks.continuous import RunningBatch
from finetooth_hooks.engine import Counts, Engine, Snapshot, StepSettings, Usage
from numpy.typing import NDArray

from finetooth_steps.agreement import of_ranks, together
from finetooth_steps.data_checks import check_gradients
from finetooth_steps.divided_batch import DividedBatch
from finetooth_steps.draws import places_of
from finetooth_steps.groups import group_indices
from finetooth_steps.normalizers import count_normalizers
from finetooth_steps.outputs import is_whole
from finetooth_steps.totals import merge_totals

R = TypeVar("R")
Scores = Mapping[str, Sequence[NDArray[Any]]]
"""Inputs of a loss, by name: `logprobs` and `logprobs@ROLE`, each an array for each datum."""
Slopes = Callable[[LossSpec, Sequence[Datum], Scores, Counts, int], tuple[LossTotals, Sequence[NDArray[Any]]]]
"""Evaluates a loss on the host: what it adds up to, and dL/dlogprob of each datum. Takes normalizers and the step."""

CAPABILITIES = frozenset(
    {
        "zero_grad", "generate", "full_state", "snapshots", "interrupt", "reference", "head", "usage", "roles",
        "step_settings", "temperature", "optimizers", "embedding_noise", "schema", "min_p", "repetition_penalty",
        "additions", "module", "handles", "gradients", "release", "continuous",
    }
)  # fmt: skip
"""What the engine behind it can do, this one can; the rest has no meaning over ranks yet."""


def even(count: int, world: int) -> list[range]:
    """Which of `count` things each rank has: as many that stand next to each other."""
    starts = [rank * count // world for rank in range(world + 1)]
    return [range(first, last) for first, last in pairwise(starts)]


def shares(data: Sequence[Datum], world: int) -> list[range]:
    """Which data each rank trains: whole groups, one behind the other.

    Raises:
        DataError: the data of a group do not stand next to each other.
    """
    groups = group_indices(data)
    of_ranks = even(int(groups[-1]) + 1 if len(data) else 0, world)
    return [range(*np.searchsorted(groups, [of.start, of.stop]).tolist()) for of in of_ranks]


def prompt_shares(prompts: Sequence[Hashable], world: int) -> list[list[int]]:
    """The places of the prompts that each rank samples. Equal prompts are at one rank: an engine counts their samples
    on, so that they differ."""
    places: dict[Hashable, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    alike = list(places.values())
    return [sorted(place for at in mine for place in alike[at]) for mine in even(len(alike), world)]


class FrontEngine(EngineBase):
    """An engine that wraps another and passes on the calls that are the same at every rank.

    Args:
        engine: the wrapped engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def capabilities(self) -> frozenset[str]:
        return self._engine.capabilities & CAPABILITIES

    @property
    def weights_version(self) -> int:
        return self._engine.weights_version

    def forward(
        self, data: Sequence[Datum], loss: LossSpec | None = None, *, role: str = "policy",
        returns: Collection[str] = ("logprobs",), normalizer: Counts | None = None, train: bool = True,
    ) -> Forward:  # fmt: skip
        """Evaluate at every rank, without a handle, since a backward would count the data once a rank."""
        return self._engine.forward(data, loss, role=role, returns=returns, normalizer=normalizer, train=False)

    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[NDArray[np.float32]]:
        return self._engine.logprobs(data, role=role)

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        return self._engine.generate(prompts, sampling)

    def running_batch(self) -> RunningBatch:
        return self._engine.running_batch()

    def save(self, path: Path) -> None:
        self._engine.save(path)

    def load(self, path: Path) -> None:
        self._engine.load(path)

    def export(self, path: Path) -> None:
        self._engine.export(path)

    def restore(self, path: Path) -> None:
        self._engine.restore(path)

    def snapshot(self) -> Snapshot:
        return self._engine.snapshot()

    def rollback(self, snapshot: Snapshot) -> None:
        self._engine.rollback(snapshot)

    def set_total_steps(self, total: int | None) -> None:
        self._engine.set_total_steps(total)

    def interrupt_when(self, asked: Callable[[], bool]) -> None:
        self._engine.interrupt_when(asked)

    def move_role(self, role: str, mix: float) -> None:
        self._engine.move_role(role, mix)

    def module(self) -> Any:
        return self._engine.module()

    @property
    def leads(self) -> bool:
        return self._engine.leads

    def first(self, call: Callable[[], R]) -> R:
        return self._engine.first(call)

    def averaged(self) -> AbstractContextManager[None]:
        return self._engine.averaged()

    def usage(self) -> Usage:
        return self._engine.usage()

    def peak_flops(self) -> float:
        return self._engine.peak_flops()


class ShardedEngine(FrontEngine):
    """The engine of one rank, called with the data of a whole step.

    Args:
        engine: of this rank; it has the collective too.
        slopes: for losses that must see a whole step.
    """

    def __init__(self, engine: Engine, collective: Collective, slopes: Slopes) -> None:
        super().__init__(engine)
        self._collective, self._slopes = collective, slopes
        self._begun = 0  # data of the step so far
        self._leads: bool | None = None
        self._pending: dict[int, tuple[Sequence[Datum], range, Sequence[NDArray[Any]] | None]] = {}

    # --- trains -------------------------------------------------------------------------------------------------------

    def forward(
        self, data: Sequence[Datum], loss: LossSpec | None = None, *, role: str = "policy",
        returns: Collection[str] = ("logprobs",), normalizer: Counts | None = None, train: bool = True,
    ) -> Forward:  # fmt: skip
        """Evaluate this rank's share and return what all ranks have, with a handle where it trains. What sees a whole
        step or gives an array for each position of a row is evaluated whole at every rank, unless it trains.

        Raises:
            EngineError: as `forward_backward`.
        """
        trains, at_step = train and role == "policy", loss is not None and loss.together == "step"
        if not trains and (at_step or any(map(is_whole, returns))):
            return super().forward(data, loss, role=role, returns=returns, normalizer=normalizer, train=train)
        if not trains:
            return self._evaluated(data, loss, role, returns, normalizer)
        data, mine, counts = self._shared(data, normalizer)
        own, slopes = [data[at] for at in mine], None
        if loss is not None and loss.together == "step":
            done, slopes = self._whole_step(data, own, loss, counts, returns)
        else:
            done = self._engine.forward(own, loss, returns=returns, normalizer=counts)
            done = self._merged(done, counts)
        if done.handle is not None:  # every rank's engine has counted as many
            self._pending[done.handle.id] = data, mine, slopes
        return done

    def backward(
        self, handle: Handle, grads: Sequence[NDArray[np.floating[Any]]] | None = None, *,
        normalizer: Counts | None = None,
    ) -> Backward:  # fmt: skip
        """Accumulate the gradients of this rank's share; the norm is that of all ranks.

        Raises:
            EngineError: the handle is unknown, used up, or from before a `step`; or other totals are given now for a
                loss over the whole step.
        """
        data, mine, slopes = self._pending.get(handle.id, ((), range(0), None))
        if grads is not None and data:
            check_gradients(data, grads)
            grads = [grads[at] for at in mine]
        if grads is None and slopes is not None:
            if normalizer is not None:
                raise EngineError(
                    "backward: the loss was evaluated over the whole step with the totals that forward was given",
                    action="give the normalizer to forward",
                )
            grads = slopes
        done = self._engine.backward(handle, grads, normalizer=normalizer)
        self._pending.pop(handle.id, None)
        self._begun += len(data)
        return done

    def release(self, handle: Handle) -> None:
        self._pending.pop(handle.id, None)
        self._engine.release(handle)

    def forward_backward(self, data: Sequence[Datum], loss: LossSpec, *, normalizer: Counts | None = None) -> Forward:
        """Computes this rank's share of the data and returns the totals over all ranks.

        Raises:
            EngineError: ranks were given other data; or a loss over the whole step reads more than log-probabilities,
                or keeps a state.
        """
        data, mine, counts = self._shared(data, normalizer)
        own = [data[at] for at in mine]
        if loss.together == "step":
            done, slopes = self._whole_step(data, own, loss, counts)
            assert done.handle is not None
            self._engine.backward(done.handle, slopes)
            done = replace(done, handle=None)
        else:
            done = self._engine.forward_backward(own, loss, normalizer=counts)
            done = self._merged(done, counts)
        self._begun += len(data)
        return done

    def _evaluated(
        self, data: Sequence[Datum], loss: LossSpec | None, role: str, returns: Collection[str],
        normalizer: Counts | None,
    ) -> Forward:  # fmt: skip
        self._check_alike(data)
        world, counts = self._collective.world, count_normalizers(data) if normalizer is None else normalizer
        mine = (even(len(data), world) if loss is None else shares(data, world))[self._collective.rank]
        own = [data[at] for at in mine]
        with together(self._collective):
            done = self._engine.forward(own, loss, role=role, returns=returns, normalizer=counts, train=False)
        return self._merged(done, counts)

    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[NDArray[np.float32]]:
        """Score this rank's share, and return the results of all ranks.

        Raises:
            EngineError: as `forward_backward`.
        """
        self._check_alike(data)
        mine = even(len(data), self._collective.world)[self._collective.rank]
        parts = of_ranks(self._collective, lambda: self._engine.logprobs([data[at] for at in mine], role=role))
        return [array for part in parts for array in part]

    @property
    def leads(self) -> bool:
        if self._leads is None:
            self._leads = is_first(self._collective)
        return self._leads

    def first(self, call: Callable[[], R]) -> R:
        leads = self.leads
        with together(self._collective):
            value = call() if leads else None
        return self._collective.broadcast(value)  # type: ignore[no-any-return]

    # --- samples ------------------------------------------------------------------------------------------------------

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        """Samples this rank's share of the prompts, and returns what all ranks have. All of them are sampled at every
        rank where an engine has no capability `own_prompts`.

        Raises:
            EngineError: ranks were given other prompts, or the engine of one of them raises.
        """
        if "own_prompts" not in self._engine.capabilities:
            return super().generate(prompts, sampling)
        rank, world = self._collective.rank, self._collective.world
        keys = [tuple(int(token) for token in prompt) for prompt in prompts]
        self._agree(f"{len(keys)} prompts of {sum(map(len, keys))} tokens (hash {hash(tuple(keys)):x})")
        places = prompt_shares(keys, world)

        def sampled() -> tuple[list[Any], float]:
            own = self._engine.generate([prompts[at] for at in places[rank]], sampling)
            return list(own), own.flops

        parts = of_ranks(self._collective, sampled)
        completions = dict(zip(chain(*places), chain(*(part for part, _ in parts)), strict=True))
        return Generated([completions[at] for at in range(len(prompts))], sum(flops for _, flops in parts))

    def running_batch(self) -> RunningBatch:
        """A batch of which each rank writes a share of the rows. Every rank writes all of them where an engine has no
        capability `own_requests`."""
        own = super().running_batch()
        return DividedBatch(own, self._collective) if "own_requests" in self._engine.capabilities else own

    def _shared(self, data: Sequence[Datum], normalizer: Counts | None) -> tuple[list[Datum], range, Counts]:
        """The data with their places in the step, which of them are this rank's, and the totals of the step."""
        placed = [replace(d, place=place) for d, place in zip(data, places_of(data, self._begun), strict=True)]
        mine = shares(placed, self._collective.world)[self._collective.rank]
        self._check_alike(placed)
        return placed, mine, count_normalizers(placed) if normalizer is None else normalizer

    def _check_alike(self, data: Sequence[Datum]) -> None:
        first, last = (data[0].id, data[-1].id) if data else ("", "")
        self._agree(f"{len(data)} data of {sum(map(len, data))} positions ({first} to {last})")

    def _agree(self, given: str) -> None:
        """
        Raises:
            EngineError: ranks were given different things.
        """
        for rank, other in enumerate(self._collective.gather(given)):
            if other != given:
                raise EngineError(
                    f"rank {rank} was given {other}, rank {self._collective.rank} {given}",
                    action="give every rank the same recipe and the same rows",
                )

    def _merged(self, done: Forward, counts: Counts) -> Forward:
        """The combined result of all ranks' parts of a call; outputs in the order of the data."""
        parts = self._collective.gather(done)
        outputs = tuple(output for part in parts for output in part.outputs)
        done = replace(done, outputs=outputs, **_counted(parts))
        if done.totals is None:
            return done
        totals = merge_totals([part.totals for part in parts], counts)
        return replace(
            done, loss=totals.loss, components=totals.components, metrics=totals.metrics, totals=totals.totals
        )

    def _whole_step(
        self, data: Sequence[Datum], own: Sequence[Datum], loss: LossSpec, counts: Counts,
        returns: Collection[str] = ("logprobs",),
    ) -> tuple[Forward, Sequence[NDArray[Any]]]:  # fmt: skip
        """Each rank scores its share, and all evaluate the loss of all; with dL/dlogprob of this rank's share."""
        strange = sorted(need for need in loss.needs if need.split("@")[0] != "logprobs")
        if strange or loss.temperature != 1.0 or loss.repetition_penalty != 1.0:
            what = f"reads {', '.join(strange)}" if strange else "is taken at a temperature or with a penalty"
            raise EngineError(
                f"loss {loss.name}: it must see the whole step and {what}, which ranks cannot do together",
                action="train on one rank (scale.devices: 1), or choose another loss",
            )
        done = self._engine.forward(own, returns=tuple({"logprobs", *returns}))
        scores = {f"logprobs@{role}": list(self._engine.logprobs(own, role=role)) for role in sorted(loss.roles)}
        scores["logprobs"] = [output["logprobs"] for output in done.outputs]
        parts = self._collective.gather(scores)
        whole = {name: [array for part in parts for array in part[name]] for name in scores}
        totals, slopes = self._slopes(loss, data, whole, counts, self._engine.weights_version)
        first = sum(len(part["logprobs"]) for part in parts[: self._collective.rank])
        merged = merge_totals([totals], counts)
        done = replace(
            self._merged(done, counts), loss=merged.loss, components=merged.components, metrics=merged.metrics,
            totals=merged.totals,
        )  # fmt: skip
        return done, slopes[first : first + len(own)]

    def step(self, *, metrics: Mapping[str, float] | None = None, settings: StepSettings | None = None) -> Stepped:
        self._begun = 0
        self._pending.clear()
        return self._engine.step(metrics=metrics, settings=settings)

    def zero_grad(self) -> None:
        self._begun = 0
        self._engine.zero_grad()

    def load(self, path: Path) -> None:
        self._begun = 0
        self._pending.clear()
        self._engine.load(path)

    def rollback(self, snapshot: Snapshot) -> None:
        self._begun = 0
        self._pending.clear()
        self._engine.rollback(snapshot)

    def peak_flops(self) -> float:
        return self._engine.peak_flops() * self._collective.world


COUNTED = ("tokens", "padded", "targets", "flops", "micro_batches")
"""Numbers of a `Forward` that add up over ranks."""


def _counted(parts: Sequence[Forward]) -> dict[str, Any]:
    return {name: sum(getattr(part, name) for part in parts) for name in COUNTED}
