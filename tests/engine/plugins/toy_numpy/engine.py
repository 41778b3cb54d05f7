"""The eight primitives in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import (
    Backward,
    Completion,
    Datum,
    EngineError,
    EngineInfo,
    Forward,
    Generated,
    Handle,
    Interrupted,
    LossResult,
    LossSpec,
    NotFinite,
    PlanError,
    Sampling,
    Stepped,
)
from finetooth_hooks.engine import Counts, Snapshot
from finetooth_hooks.protocols import EngineRequest
from numpy.typing import NDArray

from toy_numpy import rectangles, sampling, state, tape
from toy_numpy.metrics import Metrics
from toy_numpy.model import Pass, Toy, entropy, gather, grad_of_entropy, grad_of_targets, head_output, last_true
from toy_numpy.running import RunningBatch

tape.join()
Grads = dict[str, NDArray[np.float64]]
Outputs = dict[str, NDArray[np.float64]]


@dataclass
class _Pending:
    """A forward whose backward may still come."""

    data: list[Datum]
    loss: LossSpec | None
    normalizer: Counts | None
    version: int


@dataclass
class _Evaluated:
    """Losses and gradients of a step's data."""

    components: dict[str, float] = field(default_factory=dict)
    loss: float = 0.0
    metrics: Metrics = field(default_factory=Metrics)
    grads: Grads = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    micro_batches: int = 0

    def add(self, grads: Grads) -> None:
        for name, grad in grads.items():
            self.grads[name] = self.grads.get(name, 0.0) + grad


class NumpyEngine:
    """Trains the deltas of a toy, and the vector of its scalar head. See `finetooth_hooks.Engine`."""

    capabilities = frozenset({"handles", "gradients", "zero_grad", "generate", "continuous", "full_state", "reference"})

    def __init__(self, model: Toy, request: EngineRequest) -> None:
        if "v" in model.delta:
            self.capabilities = self.capabilities | {"head"}
        self.model = model
        self.request = request
        self.named = sorted(model.delta)
        self.optimizer = request.updates.optimizer.create([(name, model.delta[name]) for name in self.named])
        self.budget = request.plan.train.micro_batch_tokens or 16
        self.grads: Grads = {}
        self.states: dict[str, Mapping[str, Any]] = {}
        self.weights_version = 0
        self.total_steps: int | None = None
        self.rows: list[str] = []
        self._handles: dict[int, _Pending] = {}
        self._asked: Callable[[], bool] = lambda: False
        self._ids = itertools.count()

    @property
    def info(self) -> EngineInfo:
        trained = sum(delta.size for delta in self.model.delta.values())
        total = sum(base.size for base in self.model.base.values()) + trained
        return EngineInfo("numpy", "cpu", "fp64", total, trained)

    def interrupt_when(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def _ask(self) -> None:
        if self._asked():
            raise Interrupted("the engine was asked to stop")

    # --- evaluating ---------------------------------------------------------------------------------------------------

    def _outputs(self, datum: Datum, needs: Collection[str]) -> tuple[Pass, Outputs]:
        """The policy's pass, and every output asked for, zero where the mask is false."""
        passes = {role: self._pass(datum, role) for role in {need.partition("@")[2] or "policy" for need in needs}}
        outputs: Outputs = {}
        for need in needs:
            name, _, role = need.partition("@")
            done = passes[role or "policy"]
            if name in ("values", "scores"):
                outputs[need] = head_output(name, done, self.model, datum.mask)
                continue
            if name not in ("logprobs", "entropy"):
                raise PlanError(f"the NumPy engine has no output {name!r}", action="use logprobs or entropy")
            values = gather(done, datum.targets) if name == "logprobs" else entropy(done)
            outputs[need] = np.where(datum.mask.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0)
        return passes.get("policy") or self._pass(datum, "policy"), outputs

    def _pass(self, datum: Datum, role: str) -> Pass:
        if role not in ("policy", "reference"):
            raise PlanError(f"the NumPy engine has no role {role!r}", action="use policy or reference")
        return self.model.forward(datum.tokens, reference=role == "reference")

    def _backpropagate(self, datum: Datum, done: Pass, slopes: Outputs) -> Grads:
        """Gradients of the weights from dL/d(outputs) of one datum."""
        grad_logits = np.zeros_like(done.logp)
        grad_values = np.zeros(len(datum))
        for need, slope in slopes.items():
            if need == "scores":
                grad_values[last_true(datum.mask)] += slope * datum.mask.any()
                continue
            if need == "values":
                grad_values += np.where(datum.mask, slope, 0.0)
                continue
            slope = np.where(datum.mask.reshape(-1, *[1] * (slope.ndim - 1)), slope, 0.0)
            if need == "logprobs":
                grad_logits += grad_of_targets(done, datum.targets, slope)
            else:
                grad_logits += grad_of_entropy(done, slope)
        return self.model.backward(done, grad_logits, grad_values if "v" in self.model.delta else None)

    def _evaluate_loss(
        self, data: list[Datum], outputs: list[Outputs], loss: LossSpec, counts: Mapping[str, float]
    ) -> tuple[LossResult, dict[str, float], float, list[Outputs]]:
        """The loss over some data: result, normalised components, their weighted sum, dL/d(outputs) per datum."""
        rectangle = rectangles.loss_data(data)
        arrays = {need: rectangles.pad([each[need] for each in outputs]) for need in sorted(loss.needs)}
        policy = [need for need in arrays if "@" not in need]
        given = self.states.get(loss.name, {})
        kept: list[LossResult] = []

        def total(*values: Any) -> Any:
            result = loss.fn({**arrays, **dict(zip(policy, values, strict=True))}, rectangle, given)
            kept[:] = [result]
            parts = result.contributions.values()
            return sum(part.weight * part.total / max(counts[part.per], 1e-300) for part in parts)

        loss_value, slopes = tape.gradients(total, [arrays[need] for need in policy])
        total(*[arrays[need] for need in policy])  # again without the tape: plain numbers
        result = kept[0]
        if loss.together != "step" and dict(result.state) != dict(given):
            raise EngineError(f"loss {loss.name} changes its state, but together is {loss.together!r}")
        components = {n: float(p.total) / max(counts[p.per], 1e-300) for n, p in result.contributions.items()}
        if not np.isfinite(loss_value):
            rows = tuple(datum.id or "" for datum in data)
            named = ", ".join(rows[:5])
            raise NotFinite(f"loss {loss.name} is {loss_value} on {named}", action="look at these rows", rows=rows)
        per_datum = [
            {
                need: slope[i] if slope.ndim == 1 else slope[i, : len(datum)]
                for need, slope in zip(policy, slopes, strict=True)
            }
            for i, datum in enumerate(data)
        ]
        return result, components, loss_value, per_datum

    def _evaluate(self, data: list[Datum], loss: LossSpec, normalizer: Counts | None) -> _Evaluated:
        """A step's data, micro-batch by micro-batch; gradients are returned, not yet accumulated."""
        counts = {**rectangles.counts(data), **(normalizer or {}), "none": 1.0}
        evaluated = _Evaluated(metrics=Metrics())
        cuts = rectangles.micro_batches(data, self.budget, loss.together)
        evaluated.micro_batches = len(cuts)
        if loss.together == "step":
            scored = []
            for cut in cuts:
                self._ask()
                scored += [self._outputs(data[i], loss.needs)[1] for i in cut]
            result, evaluated.components, evaluated.loss, slopes = self._evaluate_loss(data, scored, loss, counts)
            evaluated.metrics.add(result)
            evaluated.state = result.state
            for cut in cuts:
                self._ask()
                for i in cut:
                    done, _ = self._outputs(data[i], ())
                    evaluated.add(self._backpropagate(data[i], done, slopes[i]))
            return evaluated
        for cut in cuts:
            self._ask()
            batch = [data[i] for i in cut]
            passes = [self._outputs(datum, loss.needs) for datum in batch]
            result, parts, value, slopes = self._evaluate_loss(batch, [o for _, o in passes], loss, counts)
            evaluated.metrics.add(result)
            evaluated.loss += value
            for name, part in parts.items():
                evaluated.components[name] = evaluated.components.get(name, 0.0) + part
            for datum, (done, _), slope in zip(batch, passes, slopes, strict=True):
                evaluated.add(self._backpropagate(datum, done, slope))
        return evaluated

    def _report(self, data: list[Datum], evaluated: _Evaluated | None, outputs: Any, handle: Handle | None) -> Forward:
        tokens, targets = sum(len(datum) for datum in data), sum(int(datum.mask.sum()) for datum in data)
        if evaluated is None:
            return Forward(outputs, tokens=tokens, padded=tokens, targets=targets, handle=handle)
        return Forward(
            outputs,
            evaluated.loss,
            evaluated.components,
            evaluated.metrics.values(),
            tokens,
            tokens,
            targets,
            evaluated.micro_batches,
            handle,
        )

    # --- the primitives -----------------------------------------------------------------------------------------------

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
        needs = [name if role == "policy" else f"{name}@{role}" for name in returns]
        outputs = []
        for datum in data:
            self._ask()
            found = self._outputs(datum, needs)[1]
            outputs.append({name: found[need].astype(np.float32) for name, need in zip(returns, needs, strict=True)})
        evaluated = self._evaluate(list(data), loss, normalizer) if loss else None
        handle = None
        if role == "policy" and train:
            handle = Handle(next(self._ids), self.weights_version)
            self._handles[handle.id] = _Pending(list(data), loss, normalizer, self.weights_version)
        return self._report(list(data), evaluated, tuple(outputs), handle)

    def backward(
        self,
        handle: Handle,
        grads: Sequence[NDArray[np.floating[Any]]] | None = None,
        *,
        normalizer: Counts | None = None,
    ) -> Backward:
        pending = self._handles.get(handle.id)
        if pending is None:
            raise EngineError(f"handle {handle.id} is unknown or used up", action="call forward again")
        if pending.version != self.weights_version:
            raise EngineError(
                f"handle {handle.id} is from before step {self.weights_version}", action="call forward again"
            )
        if grads is not None:
            evaluated = _Evaluated()
            for datum, grad in zip(pending.data, grads, strict=True):
                self._ask()
                done, _ = self._outputs(datum, ())
                evaluated.add(self._backpropagate(datum, done, {"logprobs": np.asarray(grad, dtype=np.float64)}))
        elif pending.loss is not None:
            evaluated = self._evaluate(pending.data, pending.loss, normalizer or pending.normalizer)
        else:
            raise EngineError(f"handle {handle.id} has no loss", action="give backward the gradients of its outputs")
        del self._handles[handle.id]
        self._accumulate(pending.data, evaluated, pending.loss)
        norm = self._norm()
        return Backward(norm, not np.isfinite(norm))

    def forward_backward(self, data: Sequence[Datum], loss: LossSpec, *, normalizer: Counts | None = None) -> Forward:
        evaluated = self._evaluate(list(data), loss, normalizer)
        self._accumulate(list(data), evaluated, loss)
        return self._report(list(data), evaluated, (), None)

    def _accumulate(self, data: list[Datum], evaluated: _Evaluated, loss: LossSpec | None) -> None:
        self.rows += [datum.id or "" for datum in data]
        for name, grad in evaluated.grads.items():
            self.grads[name] = self.grads.get(name, 0.0) + grad
        if loss is not None and evaluated.state is not None:
            self.states[loss.name] = evaluated.state

    def _norm(self) -> float:
        return float(np.sqrt(sum(float((grad**2).sum()) for _, grad in sorted(self.grads.items()))))

    def step(self, *, metrics: Mapping[str, float] | None = None) -> Stepped:
        norm, limit = self._norm(), self.request.plan.train.max_grad_norm
        if not np.isfinite(norm):
            rows = tuple(self.rows)
            self.zero_grad()
            raise NotFinite(f"the gradient norm is {norm}", action="lower optimizer.learning_rate", rows=rows)
        scale = limit / norm if limit and norm > limit else 1.0
        updates = self.request.updates
        rate = updates.schedule.factor(self.weights_version, self.total_steps) * updates.optimizer.learning_rate
        for name in self.named:
            grad = self.grads.get(name, np.zeros_like(self.model.delta[name])) * scale
            self.model.delta[name] = self.optimizer.updated(name, self.model.delta[name], grad, rate)
        self.request.updates.schedule.observe(metrics or {})
        self.zero_grad()
        self.weights_version += 1
        return Stepped(self.weights_version, rate, norm)

    def zero_grad(self) -> None:
        self.grads, self.rows = {}, []

    def generate(self, prompts: Sequence[Sequence[int]], sampling_: Sampling) -> Generated:
        found, seen = [], dict[tuple[int, ...], int]()
        for prompt in prompts:
            first = seen.get(tuple(prompt), 0)  # equal prompts count their samples on
            seen[tuple(prompt)] = first + sampling_.n
            found.append([self.complete(prompt, n, sampling_) for n in range(first, first + sampling_.n)])
        return Generated(found)

    def complete(self, prompt: Sequence[int], n: int, sampling_: Sampling) -> Completion:
        """Sample number n of a prompt."""
        return sampling.complete(self.model, prompt, n, sampling_, self.request, self.weights_version, self._ask)

    def running_batch(self) -> RunningBatch:
        return RunningBatch(self)

    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[NDArray[np.float32]]:
        need = "logprobs" if role == "policy" else f"logprobs@{role}"
        scored = []
        for datum in data:
            self._ask()
            scored.append(self._outputs(datum, (need,))[1][need].astype(np.float32))
        return scored

    def save(self, path: Path) -> None:
        state.Copied.of(self).save(path)

    def load(self, path: Path) -> None:
        state.load(self, path)
        self._handles.clear()

    def snapshot(self) -> state.Copied:
        return state.Copied.of(self)

    def rollback(self, snapshot: Snapshot) -> None:
        assert isinstance(snapshot, state.Copied)
        snapshot.give(self)
        self._handles.clear()

    def export(self, path: Path) -> None:
        self.request.trains.adapter.export(self.model, path, self.request.base.model)

    def restore(self, path: Path) -> None:
        self.request.trains.adapter.restore(self.model, path)

    def set_total_steps(self, total: int | None) -> None:
        self.total_steps = total

    def peak_memory(self) -> int:
        return sum(array.nbytes for array in (*self.model.base.values(), *self.model.delta.values()))
