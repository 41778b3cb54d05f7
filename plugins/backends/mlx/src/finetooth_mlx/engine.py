"""The engine: the eight primitives over one model of mlx-lm."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from finetooth_hooks import (
    Backward,
    DataError,
    Datum,
    EngineError,
    EngineInfo,
    Forward,
    Generated,
    Handle,
    LossSpec,
    NotFinite,
    PlanError,
    Sampling,
    Stepped,
)
from finetooth_hooks.bases import EngineBase
from finetooth_hooks.compute.held import Stack
from finetooth_hooks.engine import Counts, Snapshot, Spans, StepSettings, Usage
from finetooth_hooks.protocols import EngineRequest
from finetooth_steps.data_checks import check_data, check_fields, check_gradients
from finetooth_steps.draws import places_of
from finetooth_steps.layout import lay_out
from finetooth_steps.normalizers import count_normalizers
from finetooth_steps.outputs import is_whole
from finetooth_steps.passes import Counters, Pass, PendingPasses, report
from finetooth_steps.row_budget import check_rows
from finetooth_steps.row_filling import Filling
from finetooth_steps.step_settings import check_settings
from numpy.typing import NDArray

from finetooth_mlx.adapters import held
from finetooth_mlx.arrays import NamedArrays, named
from finetooth_mlx.capabilities import CAPABILITIES
from finetooth_mlx.exhaustion import guarded
from finetooth_mlx.generation import Generator
from finetooth_mlx.network import Network
from finetooth_mlx.optimizers import options_of
from finetooth_mlx.passes import Differentiated, Runner
from finetooth_mlx.profile import LAYOUT, OPTIMIZER, record, span
from finetooth_mlx.running import MlxHeldAdapter, MlxRunningBatch
from finetooth_mlx.state import State, checked_parts, read_state
from finetooth_mlx.updating import Update


class MlxEngine(EngineBase):
    """Trains the parameters that the adapter left trainable; `finetooth_hooks.engine.Engine` defines the primitives.

    Master weights are in fp32 by name; each pass puts them into the model. MLX's arrays never change, so a step, a
    snapshot and a failed call share them without copies.

    Args:
        cache_bits: per number in the KV cache; 0 is plain.
        packing: whether examples may share rows; None: if the models can.
        compiled: whether MLX compiles the update.

    Raises:
        PlanError: examples shall share rows, and a model does not keep them apart.
    """

    def __init__(
        self, request: EngineRequest, network: Network, cache_bits: int = 0, packing: bool | None = None, *,
        compiled: bool = False,
    ) -> None:  # fmt: skip
        self._request, self._network = request, network
        train = request.plan.train
        assert train.micro_batch_tokens is not None and train.precision is not None
        self._budget = train.micro_batch_tokens
        pad = request.text.tokenizer.pad_id
        self._runner = Runner(
            network, pad_id=pad if pad is not None and pad < request.base.facts.vocab_size else 0,
            seed=request.place.seed,
        )  # fmt: skip
        self._generator = Generator(network, request.text, self._budget, self._runner.check_asked, cache_bits)
        if packing and network.rows_obstacle:
            raise PlanError(
                f"backend.packing=true: {network.rows_obstacle}", action="set backend.packing to auto or false"
            )
        self._filling: Filling | None = None if packing is False or network.rows_obstacle else "rows"
        self._masters: NamedArrays = dict(network.initial)
        self._grads: NamedArrays = {}
        self._optimizer = request.updates.optimizer.create(list(self._masters.items()))
        self._update = Update(self._optimizer, compiled=compiled)
        self._total_steps = request.plan.total_steps
        self._counters = Counters()
        self._loss_states: dict[str, Mapping[str, Any]] = {}
        self._pending = PendingPasses()
        everything = named(network.model.parameters())
        self._info = EngineInfo(
            framework="mlx",
            device=str(request.place.hardware.device),
            precision=train.precision,
            parameters=request.base.model.parameters
            + (sum(a.size for a in self._masters.values()) if request.trains.base_frozen else 0),
            trained=sum(array.size for array in self._masters.values()),
            max_length=request.base.facts.max_positions,
            environment={"mlx": version("mlx"), "hardware": request.place.hardware.label},
        )
        # a stream of MLX belongs to a thread: no other thread could compute what is still lazy
        mx.eval(everything, self._masters, self._optimizer.state)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def capabilities(self) -> frozenset[str]:
        has = {"reference": self._request.trains.can_disable or "reference" in self._request.roles}
        has["head"] = self._request.trains.head is not None
        has["adapters"] = "additions" in self._request.trains.adapter.capabilities
        return CAPABILITIES - {word for word, is_so in has.items() if not is_so}

    @property
    def weights_version(self) -> int:
        return self._counters.step

    # --- evaluate and differentiate -----------------------------------------------------------------------------------

    @guarded("forward")
    def forward(
        self,
        data: Sequence[Datum],
        loss: LossSpec | None = None,
        *,
        role: str = "policy",
        returns: Collection[str] = ("logprobs",),
        normalizer: Counts | None = None,
        train: bool = True,
    ) -> Forward:
        work = self._work(data, loss, role=role, normalizer=normalizer)
        train = train and role == "policy"  # its backward differentiates this
        evaluated = None
        if loss is not None:
            evaluated = self._runner.evaluate(work, self._masters, train=train, returns=returns)
        outputs = [] if evaluated is None else evaluated.outputs
        missing = [name for name in returns if not outputs or name not in outputs[0] or is_whole(name)]
        if missing:
            whole = any(map(is_whole, missing))
            scored = self._runner.score(self._work(data, None, role=role, whole=whole), missing, train=train)
            outputs = [{**have, **more} for have, more in zip(outputs or [{} for _ in data], scored, strict=True)]
        handle = None
        if train:
            handle = self._pending.open(work, self.weights_version)
        return report(work, outputs, evaluated, handle)

    @guarded("backward")
    def backward(
        self,
        handle: Handle,
        grads: Sequence[NDArray[np.floating[Any]]] | None = None,
        *,
        normalizer: Counts | None = None,
    ) -> Backward:
        work = self._pending.claimed(handle, self.weights_version)
        if grads is not None:
            if normalizer is not None:
                raise EngineError("backward: gradients that are given are not normalised again", action="pass only one")
            check_gradients(work.data, grads)
            with self._whole():
                added = self._runner.backward_from(work, self._masters, grads)
            self._accumulate(work, added)
        elif work.spec is None:
            raise EngineError(
                "backward: its forward had no loss and no gradients are given",
                action="give forward a loss, or backward the gradients",
            )
        else:
            # as forward_backward would: another backward may have changed the loss's state meanwhile
            work = replace(work, state=self._loss_state(work.spec))
            self._differentiate(work if normalizer is None else replace(work, counts=normalizer), ())
        del self._pending[handle.id]
        norm = self._norm()
        return Backward(grad_norm=norm, overflow=not math.isfinite(norm))

    @guarded("forward_backward")
    def forward_backward(self, data: Sequence[Datum], loss: LossSpec, *, normalizer: Counts | None = None) -> Forward:
        work = self._work(data, loss, normalizer=normalizer)
        evaluated = self._differentiate(work, ("logprobs", "entropy"))
        return report(work, evaluated.outputs, evaluated, None)

    @guarded("logprobs")
    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[NDArray[np.float32]]:
        return [outputs["logprobs"] for outputs in self._runner.score(self._work(data, None, role=role), ("logprobs",))]

    def release(self, handle: Handle) -> None:
        self._pending.pop(handle.id, None)

    def zero_grad(self) -> None:
        self._grads = {}
        self._counters.drop()

    # --- update -------------------------------------------------------------------------------------------------------

    @guarded("step")
    def step(self, *, metrics: Mapping[str, float] | None = None, settings: StepSettings | None = None) -> Stepped:
        with span(OPTIMIZER):
            return self._step(metrics, settings or StepSettings())

    def _step(self, metrics: Mapping[str, float] | None, settings: StepSettings) -> Stepped:
        check_settings(settings, options_of(self._optimizer), type(self._optimizer).__name__)
        if not self._grads:
            raise EngineError(
                f"step {self._counters.step + 1}: no gradients were accumulated, and nothing was changed",
                action="call forward_backward or backward first",
            )
        updates, limit, norm = self._request.updates, self._request.plan.train.max_grad_norm, self._norm()
        limit = limit if settings.max_grad_norm is None else settings.max_grad_norm
        if not math.isfinite(norm):
            rows = tuple(self._counters.rows)
            self.zero_grad()
            raise NotFinite(
                f"the gradient norm is {norm} at step {self._counters.step + 1}; the gradients were dropped, the "
                "weights are as before",
                action="lower optimizer.learning_rate, or set train.precision to fp32",
                rows=rows,
            )
        rate = updates.schedule.factor(self._counters.step, self._total_steps) * updates.optimizer.learning_rate
        rate = rate if settings.learning_rate is None else settings.learning_rate
        share = limit / (norm + 1e-6) if limit and norm > limit else 1.0
        grads = self._grads if share == 1.0 else {name: grad * share for name, grad in self._grads.items()}
        self._optimizer.learning_rate = rate
        self._masters = self._update(grads, self._masters, settings.optimizer)
        self._network.place(self._masters)
        seen = {"loss": self._counters.loss, **(metrics or {})}
        self._counters.step += 1
        self._pending.clear()
        self.zero_grad()
        mx.eval(self._masters, self._optimizer.state, self._network.computing)
        updates.schedule.observe(seen)
        return Stepped(step=self._counters.step, learning_rate=rate, grad_norm=norm)

    def weights(self) -> dict[str, mx.array]:
        return dict(self._masters)

    def module(self) -> Any:
        raise EngineError(
            "the MLX engine cannot give its model away: MLX keeps no gradients on modules, which a caller could change "
            "before a step",
            action="read and set what trains by weights() and set_weights(), or set backend: torch",
        )

    def set_weights(self, weights: Mapping[str, mx.array]) -> None:
        if weights.keys() != self._masters.keys():
            raise EngineError("set_weights: other weights than those that train", action="give what weights() gives")
        self._generator.kept.forget()
        self._masters = dict(weights)
        self._network.place(self._masters)
        mx.eval(self._masters, self._network.computing)
        self._pending.clear()

    def move_role(self, role: str, mix: float) -> None:
        copy = self._network.copies.get(role)
        if copy is None:
            raise PlanError(
                f"the role {role!r} is not a copy of the policy, and only a copy can follow it",
                action="set the method's reference to frozen-copy, or leave sync_every out",
            )
        moved = {name: own + mix * (self._masters[name] - own) for name, own in copy.items()}
        self._network.holders[role] = dict(self._masters) if mix == 1 else moved
        mx.eval(self._network.holders[role])

    def set_total_steps(self, total: int | None) -> None:
        self._total_steps = total

    # --- sample -------------------------------------------------------------------------------------------------------

    @guarded("generate")
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        return Generated(self._generator.generate(prompts, sampling, weights_version=self.weights_version))

    def running_batch(self) -> MlxRunningBatch:
        return MlxRunningBatch(self._generator, lambda: self._masters, self.weights_version)

    def hold(self, path: Path | Stack | None) -> MlxHeldAdapter | None:
        if "adapters" not in self.capabilities:
            super().hold(path)
        if path is None:
            return MlxHeldAdapter(self._network, None)
        stack = [(path, 1.0)] if isinstance(path, Path) else path
        weights = held(self._request.trains.adapter, self._masters, stack)
        mx.eval(weights or {})
        return None if weights is None else MlxHeldAdapter(self._network, weights)

    # --- keep ---------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        self.snapshot().save(Path(path))

    def load(self, path: Path) -> None:
        self._take(read_state(Path(path)), str(path))

    def snapshot(self) -> State:
        self._generator.kept.forget()  # so that a run that continues here reads what a resumed one reads
        return State.of(
            self._request, self._masters, self._grads, self._optimizer.state, self._counters, self._loss_states,
            self._network.copies,
        )  # fmt: skip

    def rollback(self, snapshot: Snapshot) -> None:
        if not isinstance(snapshot, State):
            raise EngineError("rollback: this is not a snapshot of an MLX engine", action="give one that it made")
        self._take(snapshot, "the snapshot")

    def _take(self, state: State, where: str) -> None:
        self._generator.kept.forget()
        copies = self._network.copies
        restored = checked_parts(state, self._request, self._masters, self._optimizer.state, copies, where)
        self._network.holders |= restored.roles
        self._masters, self._grads, self._optimizer.state = restored.masters, restored.grads, restored.optimizer
        self._counters, self._loss_states = restored.counters, dict(restored.losses)
        self._network.place(self._masters)
        mx.eval(self._masters, self._grads, self._optimizer.state, restored.roles, self._network.computing)
        self._pending.clear()

    def export(self, path: Path) -> None:
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        self._network.place(self._masters)
        self._request.trains.adapter.export(self._network.model, path, self._request.base.model)
        self._request.text.tokenizer.save(path)

    def restore(self, path: Path) -> None:
        self._generator.kept.forget()
        try:
            self._request.trains.adapter.restore(self._network.model, Path(path))
            trained = named(self._network.model.trainable_parameters())
            self._masters = {name: array.astype(mx.float32) for name, array in trained.items()}
        finally:
            self._network.place(self._masters)
        mx.eval(self._masters, self._network.computing)
        self._pending.clear()
        self.zero_grad()

    def interrupt_when(self, asked: Callable[[], bool]) -> None:
        self._runner.asked = asked

    def usage(self) -> Usage:
        return Usage(int(mx.get_active_memory()), int(mx.get_peak_memory()))

    def peak_flops(self) -> float:
        return float(self._request.place.hardware.peak_flops.get(self._info.precision, 0.0))

    def profile(self, folder: Path) -> AbstractContextManager[Spans]:
        return record(Path(folder))

    # --- parts --------------------------------------------------------------------------------------------------------

    def _work(
        self, data: Sequence[Datum], loss: LossSpec | None, *, role: str = "policy", normalizer: Counts | None = None,
        whole: bool = False,
    ) -> Pass:  # fmt: skip
        with self._network.role(role):  # refuses by name
            pass
        data, facts = tuple(data), self._request.base.facts
        check_data(
            data, vocab_size=facts.vocab_size, max_positions=facts.max_positions,
            obstacle=self._network.rows_obstacle,
        )  # fmt: skip
        moved = next((datum for datum in data if datum.positions is not None), None)
        if moved is not None:
            raise DataError(
                moved.id or "a datum without id", "it has positions of its own, which the MLX backend does not take",
                action="leave them out, or set backend: torch",
            )  # fmt: skip
        check_rows(data, self._budget)
        if loss is not None:
            check_fields(data)
        together = "sequence" if loss is None else loss.together
        with span(LAYOUT):
            batches = lay_out(data, budget=self._budget, together=together, whole=whole, filling=self._filling)
        return Pass(
            data=data,
            batches=batches,
            places=places_of(data, len(self._counters.rows)),
            step=self._counters.step,
            role=role,
            spec=loss,
            counts=count_normalizers(data) if normalizer is None else normalizer,
            state=self._loss_state(loss),
        )

    def _loss_state(self, loss: LossSpec | None) -> Mapping[str, Any]:
        return {} if loss is None else self._loss_states.get(loss.name, {})

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Put the weights back into the model: differentiating a function leaves tracers in it."""
        try:
            yield
        finally:
            self._network.place(self._masters)
            mx.eval(self._network.computing)

    def _differentiate(self, work: Pass, returns: Collection[str]) -> Differentiated:
        """Evaluate the loss of `work` and accumulate all of its gradients, or none if it fails."""
        assert work.spec is not None
        with self._whole():
            evaluated = self._runner.evaluate(work, self._masters, train=True, backward=True, returns=returns)
        assert evaluated.totals is not None
        self._accumulate(work, evaluated.grads)
        if evaluated.state:
            self._loss_states[work.spec.name] = evaluated.state
        self._counters.loss += evaluated.totals.loss
        return evaluated

    def _accumulate(self, work: Pass, added: NamedArrays) -> None:
        before = self._grads
        # the memory layout of an array read from a file, so that sums have the same order
        plain = {name: mx.contiguous(grad) for name, grad in added.items()}
        self._grads = {name: grad if not before else before[name] + grad for name, grad in plain.items()}
        mx.eval(self._grads)
        self._counters.add_rows(work.data)
        self._counters.accumulated += 1

    def _norm(self) -> float:
        squares = [mx.sum(mx.square(grad)) for _, grad in sorted(self._grads.items())]
        return math.sqrt(float(np.array(mx.stack(squares)).sum(dtype=np.float64))) if squares else 0.0
