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
    LossSpec,
    NotFinite,
    PlanError,
    Sampling,
    Stepped,
)
from finetooth_hooks.bases import EngineBase
from finetooth_hooks.engine import Counts, Snapshot, Usage
from finetooth_hooks.protocols import EngineRequest
from finetooth_steps.data_checks import check_fields
from finetooth_steps.layout import lay_out
from finetooth_steps.loss_state import checked_state
from finetooth_steps.micro_batches import MicroBatch, one_batch
from finetooth_steps.normalizers import count_normalizers
from finetooth_steps.not_finite import check_finite
from finetooth_steps.outputs import per_datum, side_by_side
from finetooth_steps.rectangles import loss_data
from finetooth_steps.totals import Totals
from numpy.typing import NDArray

from toy_numpy import state, tape
from toy_numpy.model import (
    Pass,
    Toy,
    entropy,
    gather,
    grad_of_entropy,
    grad_of_targets,
    head_output,
    last_true,
    penalise,
)
from toy_numpy.plugin import CAPABILITIES
from toy_numpy.running import RunningBatch

tape.join()
Grads = dict[str, NDArray[np.float64]]
Outputs = dict[str, NDArray[np.float64]]


def _parted(logits: NDArray[np.float64], there: Sequence[int], penalty: float) -> NDArray[np.float64]:
    """Log-probabilities (V,) of logits (V,) under a repetition penalty."""
    factor = np.ones_like(logits)
    penalise(factor, logits, there, penalty)
    parted = logits * factor
    parted -= parted.max()
    return parted - np.log(np.exp(parted).sum())


def _added(written: Sequence[int], sampling: Sampling, width: int) -> NDArray[np.float64]:
    """What is added to logits (V,) behind what was written."""
    counts = np.bincount(np.array(written, dtype=np.int64), minlength=width)
    found = -sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
    for token, added in sampling.logit_bias:
        found[token] += added
    return found


def _draw(logp: NDArray[np.float64], sampling: Sampling, random: np.random.Generator) -> int:
    if sampling.temperature == 0:
        return int(np.argmax(logp))
    scores = logp / sampling.temperature
    order = np.argsort(-scores, kind="stable")
    p = np.exp(scores[order] - scores[order[0]])
    p /= p.sum()
    kept = np.cumsum(p) - p < sampling.top_p
    if sampling.top_k:
        kept &= np.arange(len(p)) < sampling.top_k
    kept &= p >= sampling.min_p * p[0]
    p = np.where(kept, p, 0.0)
    return int(order[np.searchsorted(np.cumsum(p), random.random() * p.sum(), side="right")])


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

    totals: Totals | None = None
    grads: Grads = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    micro_batches: int = 0

    def add(self, grads: Grads) -> None:
        for name, grad in grads.items():
            self.grads[name] = self.grads.get(name, 0.0) + grad


class NumpyEngine(EngineBase):
    """Trains the deltas of a toy, and the vector of its scalar head. See `finetooth_hooks.Engine`."""

    capabilities = CAPABILITIES

    def __init__(self, model: Toy, request: EngineRequest) -> None:
        if "v" not in model.delta:
            self.capabilities = self.capabilities - {"head"}
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

    def _outputs(self, datum: Datum, needs: Collection[str], penalty: float = 1.0) -> tuple[Pass, Outputs]:
        """The policy's pass, and every output asked for, zero where the mask is false."""
        roles = {need.partition("@")[2] or "policy" for need in needs}
        passes = {role: self._pass(datum, role, penalty) for role in roles}
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
        return passes.get("policy") or self._pass(datum, "policy", penalty), outputs

    def _pass(self, datum: Datum, role: str, penalty: float) -> Pass:
        if role not in ("policy", "reference"):
            raise PlanError(f"the NumPy engine has no role {role!r}", action="use policy or reference")
        return self.model.forward(datum.tokens, role == "reference", penalty)

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
        self, data: list[Datum], batch: MicroBatch, outputs: Mapping[int, Outputs], evaluated: _Evaluated
    ) -> dict[int, Outputs]:
        """Add the loss over a micro-batch; dL/d(outputs) by index of the datum."""
        assert evaluated.totals is not None
        spec, counts = evaluated.totals.spec, evaluated.totals.counts
        seen, zero = loss_data(data, batch, np.asarray), np.zeros(())
        given = {need: side_by_side(batch, {i: outputs[i][need] for i in batch.rows}) for need in sorted(spec.needs)}
        policy = [need for need in given if "@" not in need]
        before = self.states.get(spec.name, {})

        def total(*values: Any) -> Any:
            result = spec.fn({**given, **dict(zip(policy, values, strict=True))}, seen, before)
            return Totals(spec, counts).add(result, zero)

        _, slopes = tape.gradients(total, [given[need] for need in policy])
        result = spec.fn(given, seen, before)  # again without the tape: plain numbers
        objective = evaluated.totals.add(result, zero)
        action = "look at these rows"
        step = self.weights_version
        check_finite(objective, spec, data=data, batch=batch, outputs=given, step=step, action=action)
        evaluated.state = checked_state(spec, before, result.state)
        cut = {need: per_datum(data, batch, slope) for need, slope in zip(policy, slopes, strict=True)}
        return {i: {need: of[i] for need, of in cut.items()} for i in batch.rows}

    def _evaluate(self, data: list[Datum], loss: LossSpec, normalizer: Counts | None) -> _Evaluated:
        """A step's data, micro-batch by micro-batch; gradients are returned, not yet accumulated."""
        check_fields(data)
        evaluated = _Evaluated(Totals(loss, count_normalizers(data) if normalizer is None else normalizer))
        batches = lay_out(data, budget=self.budget, together=loss.together, whole=True)
        evaluated.micro_batches = len(batches)
        if loss.together == "step":
            outputs: dict[int, Outputs] = {}
            for batch in batches:
                self._ask()
                outputs |= {i: self._outputs(data[i], loss.needs, loss.repetition_penalty)[1] for i in batch.rows}
            slopes = self._evaluate_loss(data, one_batch(data, whole=True), outputs, evaluated)
            for batch in batches:
                self._ask()
                for i in batch.rows:
                    done, _ = self._outputs(data[i], (), loss.repetition_penalty)
                    evaluated.add(self._backpropagate(data[i], done, slopes[i]))
            return evaluated
        for batch in batches:
            self._ask()
            passes = {i: self._outputs(data[i], loss.needs, loss.repetition_penalty) for i in batch.rows}
            slopes = self._evaluate_loss(data, batch, {i: found for i, (_, found) in passes.items()}, evaluated)
            for i, (done, _) in passes.items():
                evaluated.add(self._backpropagate(data[i], done, slopes[i]))
        return evaluated

    def _report(self, data: list[Datum], evaluated: _Evaluated | None, outputs: Any, handle: Handle | None) -> Forward:
        tokens, targets = sum(len(datum) for datum in data), sum(int(datum.mask.sum()) for datum in data)
        if evaluated is None:
            return Forward(outputs, tokens=tokens, padded=tokens, targets=targets, handle=handle)
        assert evaluated.totals is not None
        return Forward(
            outputs,
            evaluated.totals.loss,
            evaluated.totals.components,
            evaluated.totals.metrics,
            tokens,
            tokens,
            targets,
            evaluated.micro_batches,
            handle,
            totals=evaluated.totals.plain,
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
        if loss is not None and evaluated.state:
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

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        found, seen = [], dict[tuple[int, ...], int]()
        for prompt in prompts:
            first = seen.get(tuple(prompt), 0)  # equal prompts count their samples on
            seen[tuple(prompt)] = first + sampling.n
            found.append([self.complete(prompt, n, sampling) for n in range(first, first + sampling.n)])
        return Generated(found)

    def complete(self, prompt: Sequence[int], n: int, sampling: Sampling) -> Completion:
        """Sample number n of a prompt with the toy's cache: the sum of embeddings so far is all it must remember."""
        model = self.model
        random = np.random.default_rng([sampling.seed, n, *prompt])
        stops = self.request.text.stop_ids if sampling.stop_ids is None else sampling.stop_ids
        E, W, H = (model.weight(name) for name in ("E", "W", "H"))
        seen, count, last = E[list(prompt)].sum(axis=0), len(prompt), prompt[-1]
        tokens: list[int] = []
        scores: list[float] = []
        text, stop = "", False
        while len(tokens) < sampling.max_tokens and not stop:
            self._ask()
            hidden = np.tanh(W @ (E[last] + seen / count) + model.base["b"])
            logits = H @ hidden + model.base["c"]
            logp = logits - logits.max()
            logp -= np.log(np.exp(logp).sum())
            parted = _parted(logits, [*prompt, *tokens], sampling.repetition_penalty)
            last = _draw(parted + _added(tokens, sampling, len(logits)), sampling, random)
            tokens.append(last)
            scores.append(float(logp[last]))
            seen, count = seen + E[last], count + 1
            stop = last in stops
            text = self.request.text.tokenizer.decode(tokens[:-1] if stop else tokens, skip_special=True)
            for ending in sampling.stop:
                if ending in text:
                    text, stop = text[: text.index(ending)], True
        return Completion(tuple(tokens), tuple(scores), text, "stop" if stop else "length", self.weights_version)

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

    def usage(self) -> Usage:
        size = sum(array.nbytes for array in (*self.model.base.values(), *self.model.delta.values()))
        return Usage(size, size)

    def peak_flops(self) -> float:
        return 0.0
