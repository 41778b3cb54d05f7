"""The NumPy engine, broken: each class in one way, and the check of the kit that must notice it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Completion, Forward, Interrupted, NotFinite, Sampling, UserError
from finetooth_steps.normalizers import count_normalizers

from toy_numpy.engine import NumpyEngine
from toy_numpy.model import Pass, Toy
from toy_numpy.running import RunningBatch


class Unmasked(NumpyEngine):
    def forward(self, data: Any, loss: Any = None, **given: Any) -> Forward:
        whole = [replace(datum, mask=np.ones(len(datum), dtype=bool)) for datum in data]
        return replace(super().forward(data, loss, **given), outputs=super().forward(whole).outputs)


class MeanOfMeans(NumpyEngine):
    def _evaluate_loss(self, data: Any, batch: Any, outputs: Any, evaluated: Any) -> Any:
        own = count_normalizers([data[i] for i in batch.rows])
        evaluated.totals.counts = {name: count * evaluated.micro_batches for name, count in own.items()}
        return super()._evaluate_loss(data, batch, outputs, evaluated)


class IgnoresTotals(NumpyEngine):
    def _evaluate(self, data: Any, loss: Any, normalizer: Any) -> Any:
        return super()._evaluate(data, loss, None)


class TotalsOfMeans(NumpyEngine):
    def _report(self, data: Any, evaluated: Any, outputs: Any, handle: Any) -> Forward:
        done = super()._report(data, evaluated, outputs, handle)
        assert done.totals is not None
        parts = {n: replace(p, total=done.components[n]) for n, p in done.totals.contributions.items()}
        return replace(done, totals=replace(done.totals, contributions=parts))


class KeepsGradients(NumpyEngine):
    def zero_grad(self) -> None: ...


class StepKeepsGradients(NumpyEngine):
    def step(self, *, metrics: Any = None) -> Any:
        kept = {name: grad.copy() for name, grad in self.grads.items()}
        stepped = super().step(metrics=metrics)
        self.grads = kept
        return stepped


class HandlesLast(NumpyEngine):
    def backward(self, handle: Any, grads: Any = None, *, normalizer: Any = None) -> Any:
        pending = self._handles.get(handle.id)
        result = super().backward(handle, grads, normalizer=normalizer)
        if pending is not None:
            self._handles[handle.id] = pending
        return result


class HandlesOutliveSteps(NumpyEngine):
    def backward(self, handle: Any, grads: Any = None, *, normalizer: Any = None) -> Any:
        if handle.id in self._handles:
            self._handles[handle.id].version = self.weights_version
        return super().backward(handle, grads, normalizer=normalizer)


class CutsWholeSteps(NumpyEngine):
    def _evaluate_loss(self, data: Any, batch: Any, outputs: Any, evaluated: Any) -> Any:
        if evaluated.totals.spec.together != "step":
            return super()._evaluate_loss(data, batch, outputs, evaluated)
        halves = [replace(batch, rows=batch.rows[at], lengths=batch.lengths[at]) for at in (slice(3), slice(3, None))]
        slopes = [super(CutsWholeSteps, self)._evaluate_loss(data, half, outputs, evaluated) for half in halves]
        return {**slopes[0], **slopes[1]}


class CutsGroups(NumpyEngine):
    def _evaluate(self, data: Any, loss: Any, normalizer: Any) -> Any:
        together = "sequence" if loss.together == "group" else loss.together
        return super()._evaluate(data, replace(loss, together=together), normalizer)


class ReferenceFollows(NumpyEngine):
    def _pass(self, datum: Any, role: str) -> Pass:
        return super()._pass(datum, "policy" if role == "reference" else role)


class AnyRole(NumpyEngine):
    def _pass(self, datum: Any, role: str) -> Pass:
        return super()._pass(datum, role if role == "reference" else "policy")


class SavesNoGradients(NumpyEngine):
    def save(self, path: Path) -> None:
        kept, self.grads = self.grads, {}
        super().save(path)
        self.grads = kept


class SavesNoLossState(NumpyEngine):
    def save(self, path: Path) -> None:
        kept, self.states = self.states, {}
        super().save(path)
        self.states = kept


class SavesRoundedWeights(NumpyEngine):
    def load(self, path: Path) -> None:
        super().load(path)
        self.model.delta = {n: v.astype(np.float32).astype(np.float64) for n, v in self.model.delta.items()}


class LoadKeepsGradients(NumpyEngine):
    def load(self, path: Path) -> None:
        kept = self.grads
        super().load(path)
        self.grads = {**kept, **self.grads}


class RollbackForgetsGradients(NumpyEngine):
    def rollback(self, snapshot: Any) -> None:
        super().rollback(snapshot)
        self.grads = {}


class LoadsAnything(NumpyEngine):
    def load(self, path: Path) -> None:
        try:
            super().load(path)
        except UserError:
            self.weights_version = 0


class ExportsNothing(NumpyEngine):
    def export(self, path: Path) -> None: ...


class RestoresNothing(NumpyEngine):
    def restore(self, path: Path) -> None:
        if not any(path.iterdir()):
            raise UserError("empty")


class SharedDice(NumpyEngine):
    def generate(self, prompts: Any, sampling: Sampling) -> Any:
        return [
            super(SharedDice, self).generate([prompt], replace(sampling, seed=sampling.seed + len(prompts)))[0]
            for prompt in prompts
        ]


class OneDraw(NumpyEngine):
    def generate(self, prompts: Any, sampling: Sampling) -> Any:
        return [[several[0]] * sampling.n for several in super().generate(prompts, sampling)]


def _changed(engine_: NumpyEngine, prompts: Any, sampling: Sampling, change: Callable[[Completion], Completion]) -> Any:
    return [[change(c) for c in several] for several in NumpyEngine.generate(engine_, prompts, sampling)]


class ScaledScores(NumpyEngine):
    def generate(self, prompts: Any, sampling: Sampling) -> Any:
        factor = sampling.temperature or 1.0
        return _changed(self, prompts, sampling, lambda c: replace(c, logprobs=tuple(x / factor for x in c.logprobs)))


class DropsStopToken(NumpyEngine):
    def generate(self, prompts: Any, sampling: Sampling) -> Any:
        return _changed(self, prompts, sampling, lambda c: replace(c, tokens=c.tokens[:-1]) if c.stop == "stop" else c)


class NamesNoVersion(NumpyEngine):
    def generate(self, prompts: Any, sampling: Sampling) -> Any:
        return _changed(self, prompts, sampling, lambda c: replace(c, weights_version=0))


class NeverGreedy(NumpyEngine):
    def generate(self, prompts: Any, sampling: Sampling) -> Any:
        return super().generate(prompts, replace(sampling, temperature=sampling.temperature or 1.0))


class IgnoresTopK(NumpyEngine):
    def generate(self, prompts: Any, sampling: Sampling) -> Any:
        return super().generate(prompts, replace(sampling, top_k=0))


class IgnoresMinP(NumpyEngine):
    def generate(self, prompts: Any, sampling: Sampling) -> Any:
        return super().generate(prompts, replace(sampling, min_p=0.0))


class IgnoresPenalty(NumpyEngine):
    def generate(self, prompts: Any, sampling: Sampling) -> Any:
        return super().generate(prompts, replace(sampling, repetition_penalty=1.0))


class IgnoresAdditions(NumpyEngine):
    def generate(self, prompts: Any, sampling: Sampling) -> Any:
        return super().generate(prompts, replace(sampling, frequency_penalty=0.0))


class TrainsWithoutPenalty(NumpyEngine):
    def _evaluate(self, data: Any, loss: Any, normalizer: Any) -> Any:
        return super()._evaluate(data, replace(loss, repetition_penalty=1.0), normalizer)


class ForwardAccumulates(NumpyEngine):
    def forward(self, data: Any, loss: Any = None, **given: Any) -> Forward:
        if loss is not None:
            self._accumulate(list(data), self._evaluate(list(data), loss, None), loss)
        return super().forward(data, loss, **given)


class DoubledCallerGradients(NumpyEngine):
    def backward(self, handle: Any, grads: Any = None, *, normalizer: Any = None) -> Any:
        grads = None if grads is None else [2 * grad for grad in grads]
        return super().backward(handle, grads, normalizer=normalizer)


class HalvedBackward(NumpyEngine):
    def backward(self, handle: Any, grads: Any = None, *, normalizer: Any = None) -> Any:
        result = super().backward(handle, grads, normalizer=normalizer)
        self.grads = {name: 0.5 * grad for name, grad in self.grads.items()}
        return result


class NeverMoves(NumpyEngine):
    def step(self, *, metrics: Any = None) -> Any:
        before = dict(self.model.delta)
        stepped = super().step(metrics=metrics)
        self.model.delta = before
        return stepped


class Restless(NumpyEngine):
    made = 0

    def __init__(self, model: Toy, request: Any) -> None:
        super().__init__(model, request)
        Restless.made += 1
        self.model.delta["W"] = self.model.delta["W"] + 1e-9 * Restless.made


class LooksAhead(NumpyEngine):
    def _pass(self, datum: Any, role: str) -> Pass:
        done = super()._pass(datum, role)
        shift = 0.1 * np.sin(float(datum.tokens.sum()) * np.arange(done.logp.shape[1]))
        logits = done.logp + shift
        return replace(done, logp=logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


class LooksAtNeighbours(NumpyEngine):
    def logprobs(self, data: Any, *, role: str = "policy") -> Any:
        return [scores * (1 + 0.01 * len(data)) for scores in super().logprobs(data, role=role)]


class Unnormalised(NumpyEngine):
    def _pass(self, datum: Any, role: str) -> Pass:
        done = super()._pass(datum, role)
        return replace(done, logp=done.logp - 0.01)


class NotANumber(NumpyEngine):
    def forward_backward(self, data: Any, loss: Any, *, normalizer: Any = None) -> Forward:
        try:
            return super().forward_backward(data, loss, normalizer=normalizer)
        except Exception as error:
            if "is nan" in str(error):
                return Forward(loss=float("nan"))
            raise


class TakesAnyState(NumpyEngine):
    def forward_backward(self, data: Any, loss: Any, *, normalizer: Any = None) -> Forward:
        try:
            return super().forward_backward(data, loss, normalizer=normalizer)
        except Exception as error:
            if "returned a state" in str(error):
                return Forward(loss=0.0)
            raise


class ForgetsState(NumpyEngine):
    def step(self, *, metrics: Any = None) -> Any:
        self.states = {}
        return super().step(metrics=metrics)


class ValuesEverywhere(NumpyEngine):
    def forward(self, data: Any, loss: Any = None, **given: Any) -> Forward:
        done = super().forward(data, loss, **given)
        values = [self.model.values(self._pass(datum, "policy")) for datum in data]
        return replace(done, outputs=tuple({**o, "values": v} for o, v in zip(done.outputs, values, strict=True)))


class ValuesKnowTheMask(NumpyEngine):
    def forward(self, data: Any, loss: Any = None, **given: Any) -> Forward:
        done = super().forward(data, loss, **given)
        scaled = [{n: o * d.mask.mean() for n, o in out.items()} for d, out in zip(data, done.outputs, strict=True)]
        return replace(done, outputs=tuple(scaled))


class HeadClimbs(NumpyEngine):
    def _backpropagate(self, datum: Any, done: Pass, slopes: Any) -> Any:
        turned = {need: -slope if need in ("scores", "values") else slope for need, slope in slopes.items()}
        return super()._backpropagate(datum, done, turned)


class IgnoresTotalsOfPairs(IgnoresTotals): ...


class ForgetsTheHead(NumpyEngine):
    def restore(self, path: Path) -> None:
        kept = self.model.delta["v"]
        super().restore(path)
        self.model.delta["v"] = kept


class AsksOnce(NumpyEngine):
    def _ask(self) -> None: ...

    def forward_backward(self, data: Any, loss: Any, *, normalizer: Any = None) -> Forward:
        NumpyEngine._ask(self)
        return super().forward_backward(data, loss, normalizer=normalizer)


class DropsEverything(NumpyEngine):
    def _ask(self) -> None:
        try:
            super()._ask()
        except Interrupted:
            self.zero_grad()
            raise


class UsesUpHandles(NumpyEngine):
    def backward(self, handle: Any, grads: Any = None, *, normalizer: Any = None) -> Any:
        try:
            return super().backward(handle, grads, normalizer=normalizer)
        except Interrupted:
            del self._handles[handle.id]
            raise


class NamesNoRows(NumpyEngine):
    def forward_backward(self, data: Any, loss: Any, *, normalizer: Any = None) -> Forward:
        try:
            return super().forward_backward(data, loss, normalizer=normalizer)
        except NotFinite as error:
            raise NotFinite(error.problem) from error


class NamesTheLastCall(NumpyEngine):
    def _accumulate(self, data: Any, evaluated: Any, loss: Any) -> None:
        super()._accumulate(data, evaluated, loss)
        self.rows = [datum.id for datum in data]


class CountsBadSteps(NumpyEngine):
    def step(self, *, metrics: Any = None) -> Any:
        try:
            return super().step(metrics=metrics)
        except NotFinite:
            self.weights_version += 1
            raise


class BatchesMatter(NumpyEngine):
    """A sample's number depends on how many requests came before."""

    def running_batch(self) -> Any:
        class Batch(RunningBatch):
            def add(self, prompt: Any, sampling: Any, *, first: int = 0, adapter: Any = None) -> int:
                return super().add(prompt, sampling, first=first + len(self))

        return Batch(self)


class CountsFromZero(NumpyEngine):
    def running_batch(self) -> Any:
        class Batch(RunningBatch):
            def add(self, prompt: Any, sampling: Any, *, first: int = 0, adapter: Any = None) -> int:
                return super().add(prompt, sampling)

        return Batch(self)


class WritesWhatWasCancelled(NumpyEngine):
    def running_batch(self) -> Any:
        class Batch(RunningBatch):
            def cancel(self, request: int) -> None: ...

        return Batch(self)


class WritesWithOldWeights(NumpyEngine):
    def running_batch(self) -> Any:
        class Batch(RunningBatch):
            def changed(self) -> bool:
                return False

        return Batch(self)


class RemembersAnswers(NumpyEngine):
    """A prompt that begins like one before gets what belongs to the weights of that time."""

    def running_batch(self) -> Any:
        engine, models = self, self.__dict__.setdefault("_models", {})

        class Batch(RunningBatch):
            def add(self, prompt: Any, sampling: Any, *, first: int = 0, adapter: Any = None) -> int:
                now = copy.deepcopy(engine.model)
                engine.model, mine = models.setdefault(tuple(prompt[:40]), now), engine.model
                try:
                    return super().add(prompt, sampling, first=first)
                finally:
                    engine.model = mine

        return Batch(self)


class TakesEmptyPrompts(NumpyEngine):
    def running_batch(self) -> Any:
        class Batch(RunningBatch):
            def add(self, prompt: Any, sampling: Any, *, first: int = 0, adapter: Any = None) -> int:
                return super().add(prompt or [1], sampling, first=first)

        return Batch(self)


class Boasts(NumpyEngine):
    capabilities = NumpyEngine.capabilities | {"telepathy"}


class SaysMore(NumpyEngine):
    capabilities = NumpyEngine.capabilities | {"profile"}


class SaysLess(NumpyEngine):
    capabilities = NumpyEngine.capabilities - {"snapshots"}


class Underived:
    """Hands on what it is asked for and has nothing itself."""

    def __init__(self, model: Toy, request: Any) -> None:
        self.inner = NumpyEngine(model, request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


BROKEN = {
    Underived: "derives_from_the_base",
    SaysMore: "what_is_said_works",
    SaysLess: "what_is_not_said_is_refused",
    Unmasked: "forward_gives_log_probabilities",
    MeanOfMeans: "loss_is_normalised_over_the_step",
    IgnoresTotals: "calls_accumulate",
    TotalsOfMeans: "totals_of_calls_merge",
    KeepsGradients: "zero_grad_drops",
    StepKeepsGradients: "step_drops_gradients",
    HandlesLast: "spent_handles_are_refused",
    HandlesOutliveSteps: "spent_handles_are_refused",
    CutsWholeSteps: "whole_steps_stay_together",
    CutsGroups: "groups_stay_together",
    ReferenceFollows: "reference_is_the_untrained_policy",
    AnyRole: "unknown_role_is_refused",
    SavesNoGradients: "accumulated_gradients_are_saved",
    SavesNoLossState: "restored_engine_continues_exactly",
    SavesRoundedWeights: "restored_engine_continues_exactly",
    LoadKeepsGradients: "load_drops_what_was_there",
    RollbackForgetsGradients: "a_snapshot_stays_what_it_was",
    LoadsAnything: "foreign_state_is_refused",
    ExportsNothing: "export_writes_an_artifact",
    RestoresNothing: "artifact_is_taken_back",
    SharedDice: "seed_alone_decides",
    OneDraw: "seed_alone_decides",
    ScaledScores: "completion_logprobs_are_logprobs",
    DropsStopToken: "stop_ids_end_a_completion",
    NamesNoVersion: "completions_name_their_weights",
    NeverGreedy: "greedy_takes_the_likeliest",
    IgnoresTopK: "top_k_one_is_greedy",
    IgnoresMinP: "min_p_one_is_greedy",
    IgnoresPenalty: "a_repetition_penalty_parts_what_was_there",
    IgnoresAdditions: "additions_are_to_logits",
    TrainsWithoutPenalty: "a_repetition_penalty_parts_what_was_there",
    ForwardAccumulates: "forward_changes_nothing",
    DoubledCallerGradients: "caller_gradients_equal_the_loss",
    HalvedBackward: "forward_then_backward_is_forward_backward",
    NeverMoves: "step_changes_the_weights",
    Restless: "fresh_engines_agree",
    LooksAhead: "the_future_does_not_matter",
    LooksAtNeighbours: "neighbours_do_not_matter",
    Unnormalised: "probabilities_sum_to_one",
    NotANumber: "loss_that_is_not_finite_is_refused",
    TakesAnyState: "state_of_a_partial_loss_is_refused",
    ForgetsState: "loss_state_goes_from_step_to_step",
    ValuesEverywhere: "values_are_where_the_mask_is",
    ValuesKnowTheMask: "values_do_not_depend_on_the_mask",
    HeadClimbs: "losses_read_the_head",
    IgnoresTotalsOfPairs: "layout_does_not_change_a_head",
    ForgetsTheHead: "a_head_is_kept",
    AsksOnce: "asked_before_every_micro_batch",
    DropsEverything: "an_interrupted_call_leaves_no_trace",
    UsesUpHandles: "an_interrupted_call_leaves_no_trace",
    NamesNoRows: "a_loss_of_nan_names_its_rows",
    NamesTheLastCall: "a_gradient_that_is_not_finite_names_what_was_accumulated",
    CountsBadSteps: "a_gradient_that_is_not_finite_names_what_was_accumulated",
    BatchesMatter: "a_running_batch_writes_what_generate_writes",
    CountsFromZero: "equal_prompts_count_on",
    WritesWhatWasCancelled: "a_cancelled_request_leaves",
    WritesWithOldWeights: "changed_weights_end_a_running_batch",
    RemembersAnswers: "what_was_read_ends_with_its_weights",
    TakesEmptyPrompts: "an_empty_prompt_is_refused_by_a_running_batch",
    Boasts: "info_is_consistent",
}
