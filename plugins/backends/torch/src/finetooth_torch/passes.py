"""Runs a step's examples through the model, forward and backward, micro-batch by micro-batch.

Dropout is keyed by seed, step, example and position (`finetooth_torch.draws`), so a repeated pass (a backward that
recomputes its forward, the second half of a loss over several micro-batches), or one with other micro-batches, has the
same masks. A user's loss or module that draws from torch's generators gets a stream of the micro-batch, keyed by the
place of its first example.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from finetooth_hooks import Datum, EngineError, Interrupted, LossData, LossSpec, NotFinite, PlanError
from finetooth_kernels.memory import placed
from finetooth_steps.loss_state import checked_state
from finetooth_steps.micro_batches import MicroBatch, one_batch
from finetooth_steps.not_finite import check_finite, check_outputs
from finetooth_steps.outputs import is_whole, per_datum, side_by_side
from finetooth_steps.passes import Evaluated, Pass
from finetooth_steps.totals import Totals
from numpy.typing import NDArray
from torch import Tensor

from finetooth_torch.compiled_layers import compiler_errors
from finetooth_torch.device.readings import Readings
from finetooth_torch.layout.rectangles import Rectangle, loss_data, make_rectangle
from finetooth_torch.network import Network
from finetooth_torch.offload.saved_tensors import SavedTensors
from finetooth_torch.offload.transfers import placed_together
from finetooth_torch.precision import result_dtype
from finetooth_torch.profile.recording import spanned
from finetooth_torch.profile.trace import LAYOUT_SPAN
from finetooth_torch.randomness import seeded
from finetooth_torch.ranks import Ranks
from finetooth_torch.staged.passes import StagedPasses

STOPPED = "the engine was asked to stop; what the call had accumulated was dropped"


class Runner:
    """Runs passes.

    Args:
        scale: gives the current loss scale (1 except in fp16).
        pad_id: any valid token id.
        seed: keys dropout.
        saved: keeps tensors for the backward pass.
        ranks: the other ranks.
    """

    def __init__(
        self, network: Network, *, device: torch.device, dtype: torch.dtype, pad_id: int, seed: int, scale: Any,
        saved: SavedTensors, ranks: Ranks,
    ) -> None:  # fmt: skip
        self._saved, self._ranks = saved, ranks
        self._network, self._device, self._dtype = network, device, result_dtype(dtype)
        self._pad_id, self._seed, self._scale = pad_id, seed, scale
        self._at_once = False  # see `evaluate`
        self._wrong: NotFinite | None = None  # raised at the end of a pass
        self.asked: Callable[[], bool] = _never  # whether the engine's caller asks it to stop

    def check_asked(self) -> None:
        """Called between two micro-batches; if no rank can save alone, all of them stop at the next call.

        Raises:
            Interrupted: the caller asks the engine to stop.
        """
        if not self._ranks.stops_together and self.asked():
            raise Interrupted(STOPPED)

    def begin(self) -> None:
        """Called before a pass through the model.

        Raises:
            Interrupted: see `check_asked`.
        """
        if self._ranks.stops_together and self._ranks.any(self.asked()):
            raise Interrupted(STOPPED)

    # --- without a graph ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, work: Pass, returns: Collection[str], *, train: bool = False) -> list[dict[str, NDArray[Any]]]:
        """Outputs per example, by name, as arrays; `hidden` and `logits` at every position.

        Args:
            train: with the dropout of the pass's backward, where a loss or the gradients are checked.

        Raises:
            NotFinite: outputs that no backward pass follows are not finite; names the examples.
        """
        self.begin()
        passes = self._passes(work, work.computed)
        outputs: list[dict[str, NDArray[Any]]] = [{} for _ in work.data]
        readings = Readings(self._device)

        def compute(of: Pass, batch: MicroBatch, rectangle: Rectangle) -> None:
            computed = self._network.outputs(rectangle, returns, everywhere=True)
            if of is work:
                self._keep(outputs, work, batch, computed, readings)

        self._each(passes, compute, train=train, backward=False)
        readings.finish()
        scored: list[dict[str, NDArray[Any]]] = self._shared(outputs)
        if not train:
            check_outputs(work.data, scored)
        return scored

    def evaluate(
        self, work: Pass, *, train: bool, backward: bool = False, returns: Collection[str] = (), at_once: bool = False
    ) -> Evaluated:
        """Evaluate the loss of `work`; with `backward`, its gradients too.

        The loss is checked once, at the end. If it is not finite, the pass is repeated to find the examples.

        Args:
            train: with dropout.
            returns: outputs to return per example, of those that the loss needs.
            at_once: check the loss before each micro-batch's backward pass, which waits for the device.

        Raises:
            NotFinite: the loss is not finite; names the examples.
        """
        self.begin()
        evaluated = self._evaluate(work, train=train, backward=backward, returns=returns, at_once=at_once)
        assert evaluated.totals is not None
        wrong = not at_once and not evaluated.totals.finite
        if wrong or (self._ranks.sharded and self._ranks.any(wrong)):
            self._evaluate(work, train=train, backward=False, returns=(), at_once=True)
        if wrong:
            raise NotFinite(
                f"loss {evaluated.totals.spec.name!r} was not finite at step {work.step + 1}, and is finite when it is "
                "computed again",
                action="look for what is not deterministic in the loss",
                rows=tuple(str(datum.id or row) for row, datum in enumerate(work.data)),
            )
        return evaluated

    def _evaluate(
        self, work: Pass, *, train: bool, backward: bool, returns: Collection[str], at_once: bool
    ) -> Evaluated:
        spec = work.spec
        assert spec is not None
        totals = Totals(spec, work.counts)
        self._at_once = at_once
        evaluated = Evaluated([{} for _ in work.data], totals, dict(work.state))
        batches = work.batches
        if spec.together == "step" and len(batches) > 1:
            batches = (replace(one_batch(work.data, whole=self._network.reads_whole_rows), pieces=batches),)
        self._wrong = None
        if (self._ranks.sharded or self._network.staged) and any(batch.pieces for batch in batches):
            raise EngineError(
                f"loss {spec.name}: a group of data exceeds train.micro_batch_tokens, and ranks that hold parts of the "
                "model cannot cut it",
                action="raise train.micro_batch_tokens",
            )
        passes = self._passes(work, batches)
        of_roles = self._staged_roles(passes, spec)
        readings = Readings(self._device)

        def compute(of: Pass, batch: MicroBatch, rectangle: Rectangle) -> Tensor:
            if of is not work:
                return _nothing(self._outputs(spec, rectangle, train=train, given=of_roles.get(id(batch))))
            data = loss_data(work.data, rectangle, self._dtype)
            expected = _expected(spec, data) if backward else None
            outputs = self._outputs(spec, rectangle, train=train, expected=expected, given=of_roles.get(id(batch)))
            objective = self._loss(work, rectangle, data, outputs, totals, evaluated)
            returned = {name: values for name, values in outputs.items() if name in returns}
            self._keep(evaluated.outputs, work, batch, returned, readings)
            return torch.stack([objective, *self._of_routers(totals, objective)]).sum() if backward else objective

        for several in (passes,) if self._network.staged is not None else ((one,) for one in passes):
            if several and several[0][1].pieces:
                self._evaluate_pieces(
                    work, several[0][1], evaluated, readings, train=train, backward=backward, returns=returns
                )
            else:
                self._each(several, compute, train=train, backward=backward)
        readings.finish()
        if self._network.staged is not None:
            wrong = None if self._wrong is None else (self._wrong.problem, self._wrong.action, self._wrong.rows)
            _ = totals.plain  # all numbers are copied to the host
            numbers = {name: value for name, value in vars(totals).items() if name != "spec"}
            shared = self._shared((numbers, evaluated.outputs, evaluated.state, wrong))
            numbers, evaluated.outputs, evaluated.state, wrong = shared
            vars(totals).update(numbers)
            self._wrong = None if wrong is None else NotFinite(wrong[0], action=wrong[1], rows=wrong[2])
        if self._wrong is not None:
            raise self._wrong
        return evaluated

    # --- with gradients given -----------------------------------------------------------------------------------------

    def backward_from(self, work: Pass, grads: Sequence[NDArray[np.floating[Any]]]) -> None:
        """Accumulate gradients from dL/dlogprob per example, in the shape of its targets."""
        self.begin()
        passes = self._passes(work, work.computed)

        def compute(of: Pass, batch: MicroBatch, rectangle: Rectangle) -> Tensor:
            if of is not work:
                return _nothing(self._network.outputs(rectangle, ("logprobs",)))
            (gradients,) = placed_together([side_by_side(batch, grads)], self._device, self._dtype)
            logprobs = self._network.outputs(rectangle, ("logprobs",), expected=gradients)["logprobs"]
            return torch.stack([(logprobs * gradients).sum(), *self._of_routers(None, gradients)]).sum()

        self._each(passes, compute, train=True, backward=True)

    @torch.no_grad()
    def routed(self, work: Pass) -> list[int]:
        """Count the choices of a mixture's routers over all examples of a pass: `RouterLosses.counts`. With the dropout
        of its backward; empty without examples. The host waits for the device once."""
        routers = self._network.routers
        assert routers is not None
        counts: list[Tensor] = []
        for batch in work.computed:
            with self._as(work, batch, work.role, train=True):
                self._network.outputs(self._rectangle(work, batch), ())
                counts.append(routers.counts())
        return torch.stack(counts).sum(0).cpu().tolist() if counts else []

    # --- a loss that must see more than fits into a micro-batch -----------------------------------------------------

    def _evaluate_pieces(
        self, work: Pass, whole: MicroBatch, evaluated: Evaluated, readings: Readings, *, train: bool,
        backward: bool, returns: Collection[str],
    ) -> None:  # fmt: skip
        """Compute outputs without a graph, evaluate the loss once on them, then backpropagate its gradient piece by
        piece.

        By the chain rule, the sum over pieces of dL/d(outputs) times d(outputs)/d(parameters) is the gradient of the
        one big batch.
        """
        assert evaluated.totals is not None
        rectangle, places = self._rectangle(work, whole), {row: s for s, row in enumerate(whole.rows)}
        leaves: dict[str, Tensor] = {}
        of_pieces = [placed(torch.tensor([places[row] for row in piece.rows]), self._device) for piece in whole.pieces]
        with torch.no_grad():
            for piece, rows in zip(whole.pieces, of_pieces, strict=True):
                with self._as(work, piece, work.role, train=train):
                    of_piece = self._outputs(evaluated.totals.spec, self._rectangle(work, piece), train=train)
                for name, values in of_piece.items():
                    if values.dim() == 1:  # a number per sequence
                        leaves.setdefault(name, values.new_zeros(len(whole.rows)))[rows] = values
                        continue
                    if name not in leaves:
                        leaves[name] = values.new_zeros((*rectangle.mask.shape, *values.shape[2:]))
                    leaves[name][rows, : values.shape[1]] = values
        policy = [name for name in leaves if "@" not in name]
        for name in policy:
            leaves[name].requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            data = loss_data(work.data, rectangle, self._dtype)
            objective = self._loss(work, rectangle, data, leaves, evaluated.totals, evaluated)
            if backward and objective.requires_grad:
                objective.backward()  # type: ignore[no-untyped-call]
        returned = {name: values for name, values in leaves.items() if name in returns}
        self._keep(evaluated.outputs, work, whole, returned, readings)
        if not backward:
            return
        pulling = {name: gradient for name in policy if (gradient := leaves[name].grad) is not None}
        for piece, rows in zip(whole.pieces, of_pieces, strict=True):
            pull = {name: of[rows] if of.dim() == 1 else of[rows, : piece.width] for name, of in pulling.items()}
            expected = None if "entropy" in pull else pull.get("logprobs")  # adds a gradient through the logits
            with self._as(work, piece, work.role, train=True), torch.enable_grad():
                spec = evaluated.totals.spec
                again = self._network.outputs(
                    self._rectangle(work, piece), policy, expected=expected, temperature=spec.temperature,
                    repetition_penalty=spec.repetition_penalty,
                )  # fmt: skip
                pulled = [(again[name] * of).sum() for name, of in pull.items()]
                pulled += self._of_routers(evaluated.totals, objective)
                if pulled:
                    self._backward(torch.stack(pulled).sum())

    # --- parts --------------------------------------------------------------------------------------------------------

    def _each(
        self, passes: Sequence[tuple[Pass, MicroBatch]],
        compute: Callable[[Pass, MicroBatch, Rectangle], Tensor | None], *, train: bool, backward: bool,
        role: str | None = None,
    ) -> None:  # fmt: skip
        """Run forward and backward for each micro-batch, with the loss from `compute`.

        Args:
            passes: micro-batches, each with its pass.
            compute: a micro-batch's part of the loss; called with the model as the role, in a pipeline only at the last
                rank.
            role: that of the pass, by default.
        """
        staged = self._network.staged
        if staged is None:
            for work, batch in passes:
                rectangle = self._rectangle(work, batch)
                with self._as(work, batch, role or work.role, train=train), torch.set_grad_enabled(backward):
                    objective = compute(work, batch, rectangle)
                    if backward and objective is not None:
                        self._backward(objective)
            return
        if not passes:
            return

        def entered(number: int) -> Any:
            work, batch = passes[number]
            return self._as(work, batch, role or work.role, train=train)

        def scaled(number: int) -> Tensor | None:
            objective = compute(*passes[number], rectangles[number])
            return None if objective is None else objective * self._scale()

        rectangles = [self._rectangle(work, batch) for work, batch in passes]
        StagedPasses(staged, self._network.draws, rectangles, entered, scaled, backward=backward).through()

    def _staged_roles(
        self, passes: Sequence[tuple[Pass, MicroBatch]], spec: LossSpec
    ) -> Mapping[int, Mapping[str, Tensor]]:
        """Outputs of other roles that the loss needs, by the identity of the micro-batch, in a pipeline: a micro-batch
        passes it as one role at a time."""
        of_batch: dict[int, dict[str, Tensor]] = {id(batch): {} for _, batch in passes}
        for role in sorted(spec.roles) if self._network.staged is not None else ():

            def compute(_: Pass, batch: MicroBatch, rectangle: Rectangle, role: str = role) -> None:
                of_batch[id(batch)].update(self._of_role(spec, rectangle, role))

            self._each(passes, compute, train=False, backward=False, role=role)
        return of_batch

    def _of_role(self, spec: LossSpec, rectangle: Rectangle, role: str) -> dict[str, Tensor]:
        needs = [need.split("@", 1)[0] for need in spec.needs if need.endswith(f"@{role}")]
        of_role = self._network.outputs(
            rectangle, needs, temperature=spec.temperature, repetition_penalty=spec.repetition_penalty
        )
        return {f"{name}@{role}": values for name, values in of_role.items()}

    def _shared(self, value: Any) -> Any:
        """The results of a pipeline's last rank, sent to all its ranks, with their cost."""
        staged = self._network.staged
        if staged is None:
            return value
        value, flops = staged.line.gather((value, self._network.executed()))[-1]
        self._network.took(flops)
        return value

    def _outputs(
        self, spec: LossSpec, rectangle: Rectangle, *, train: bool, expected: Tensor | None = None,
        given: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The outputs that the loss needs: `NAME` of the pass's role with a graph, `NAME@ROLE` of other roles without.

        Args:
            expected: see `Network.outputs`.
            given: outputs of other roles, computed before.
        """
        outputs: dict[str, Tensor] = dict(given or {})
        ask = partial(self._network.outputs, temperature=spec.temperature, repetition_penalty=spec.repetition_penalty)
        for role in sorted(spec.roles) if self._network.staged is None else ():
            with torch.no_grad(), self._network.role(role):
                self._network.train(False)
                outputs.update(self._of_role(spec, rectangle, role))
        self._network.train(train)
        own = [need for need in spec.needs if "@" not in need]
        outputs.update(ask(rectangle, own, expected=expected))
        return outputs

    def _loss(
        self, work: Pass, rectangle: Rectangle, data: LossData, outputs: dict[str, Tensor], totals: Totals,
        evaluated: Evaluated,
    ) -> Tensor:  # fmt: skip
        spec = totals.spec
        result = spec.fn(outputs, data, {name: self._array(value) for name, value in work.state.items()})
        objective: Tensor = totals.add(result, rectangle.mask.new_zeros((), dtype=self._dtype))
        if self._at_once:
            try:
                check_finite(
                    objective, spec, data=work.data, batch=rectangle.batch, outputs=outputs, step=work.step,
                    action="look at these rows, lower optimizer.learning_rate, or set train.precision to fp32",
                )  # fmt: skip
            except NotFinite as error:
                wrong = self._check_weights(spec, work.step, error)
                if not self._ranks.sharded and self._network.staged is None:
                    raise wrong from None
                self._wrong = self._wrong or wrong  # the other ranks compute all of their micro-batches
        evaluated.state = checked_state(spec, work.state, result.state)
        return objective

    def _of_routers(self, totals: Totals | None, like: Tensor) -> list[Tensor]:
        """The routers' part of the last micro-batch's loss, with its graph; also added to `totals`."""
        if self._network.routers is None:
            return []
        result = self._network.routers.losses()
        if totals is not None:
            return [totals.add(result, like)]
        return [part.weight * part.total for part in result.contributions.values()]

    def _check_weights(self, spec: LossSpec, step: int, error: NotFinite) -> NotFinite:
        """The error; another one if the weights are not finite, so that no row is at fault."""
        if self._ranks.finite_weights():
            return error
        return NotFinite(
            f"loss {spec.name!r} is not finite at step {step + 1}: weights are not since the update before",
            action="look at the optimizer, and lower optimizer.learning_rate; the rows are not at fault",
            rows=error.rows,
        )

    def _passes(self, work: Pass, batches: Sequence[MicroBatch]) -> list[tuple[Pass, MicroBatch]]:
        """Micro-batches of `work`, followed by passes over a dummy row with weight 0: if ranks hold parts of a model,
        all make as many passes as the rank with the most. Called before the first pass of a call."""
        row = Datum.from_tokens([self._pad_id, self._pad_id])
        idle = replace(work, data=(row,), batches=(one_batch([row]),), places=(0,))
        made_up = [(idle, idle.batches[0])] * self._ranks.missing(len(batches))
        return [*((work, batch) for batch in batches), *made_up]

    def _backward(self, objective: Tensor) -> None:
        if objective.requires_grad:
            with compiler_errors("the backward pass"):
                (objective * self._scale()).backward()

    @spanned(LAYOUT_SPAN)
    def _rectangle(self, work: Pass, batch: MicroBatch) -> Rectangle:
        return make_rectangle(work.data, batch, pad_id=self._pad_id, device=self._device)

    def _array(self, value: Any) -> Any:
        """A state's array as a tensor; numbers stay numbers."""
        if isinstance(value, np.ndarray):
            return placed(torch.from_numpy(value.copy()), self._device)
        return value

    def _as(self, work: Pass, batch: MicroBatch, role: str, *, train: bool) -> Any:
        return _Entered(self, work, batch, role, train)

    def _keep(
        self, outputs: list[dict[str, NDArray[Any]]], work: Pass, batch: MicroBatch, computed: Mapping[str, Tensor],
        readings: Readings,
    ) -> None:  # fmt: skip
        """Store outputs of a micro-batch: those at every position now, the others when `readings` finish."""

        def keep(name: str, values: Tensor) -> None:
            for index, array in per_datum(work.data, batch, values).items():
                outputs[index][name] = array

        for name, values in computed.items():
            if is_whole(name):
                keep(name, values)
            else:
                readings.ask(values, partial(keep, name))


class _Entered:
    """The model as a role, in training or evaluation mode, with the micro-batch's random streams."""

    def __init__(self, runner: Runner, work: Pass, batch: MicroBatch, role: str, train: bool) -> None:
        places = [work.places[row] for row in batch.rows]
        self._runner, self._train = runner, train
        self._streams = seeded(runner._device, runner._seed, work.step, places[0])
        self._draws = runner._network.draws.entered(runner._seed, work.step, places)
        self._role, self._saved = runner._network.role(role), runner._saved.entered()

    def __enter__(self) -> None:
        self._runner.check_asked()
        self._role.__enter__()
        self._streams.__enter__()
        self._draws.__enter__()
        self._saved.__enter__()
        self._runner._network.train(self._train)

    def __exit__(self, *error: Any) -> None:
        self._saved.__exit__(*error)
        self._draws.__exit__(*error)
        self._streams.__exit__(*error)
        self._role.__exit__(*error)


def _expected(spec: LossSpec, data: LossData) -> Tensor | None:
    """Numbers proportional to the coming gradient of the log-probabilities, if the loss gives them."""
    if spec.proportional_to is None:
        return None
    if spec.proportional_to not in data.fields:
        raise PlanError(
            f"loss {spec.name}: it is declared proportional_to={spec.proportional_to!r}, a field that the data lack",
            action=f"declare one of {', '.join(sorted(data.fields))}, or none",
        )
    field: Tensor = data.fields[spec.proportional_to]
    return field


def _nothing(outputs: Mapping[str, Tensor]) -> Tensor:
    """0, with a gradient of 0 for the inputs of the policy's outputs."""
    return torch.stack([(values * 0.0).sum() for name, values in outputs.items() if "@" not in name]).sum()


def _never() -> bool:
    return False
