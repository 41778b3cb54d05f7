"""Runs a step's examples through the model, forward and backward, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
from finetooth_hooks import Interrupted, LossSpec
from finetooth_steps.draws import position_keys
from finetooth_steps.loss_state import checked_state
from finetooth_steps.micro_batches import MicroBatch, one_batch
from finetooth_steps.not_finite import check_finite, check_outputs
from finetooth_steps.outputs import per_datum, side_by_side
from finetooth_steps.passes import Evaluated, Pass
from finetooth_steps.rectangles import loss_data, make_rectangle
from finetooth_steps.segments import pieces_of
from finetooth_steps.totals import Totals
from numpy.typing import NDArray

from finetooth_mlx.arrays import NamedArrays, to_mx
from finetooth_mlx.network import Network, Rows
from finetooth_mlx.profile import COMPUTE, GRAPH, span

Outputs = dict[str, mx.array]


@dataclass
class Differentiated(Evaluated):
    """The results of a pass, with its gradients.

    Attributes:
        grads: by parameter name; empty without a backward.
    """

    grads: NamedArrays = field(default_factory=dict)


class Runner:
    """Runs passes.

    Args:
        pad_id: any valid token id.
        seed: keys dropout.
    """

    def __init__(self, network: Network, *, pad_id: int, seed: int) -> None:
        self._network, self._pad_id, self._seed = network, pad_id, seed
        self.asked: Callable[[], bool] = lambda: False  # whether the engine's caller asks it to stop

    def check_asked(self) -> None:
        """Called between two micro-batches.

        Raises:
            Interrupted: the caller asks the engine to stop.
        """
        if self.asked():
            raise Interrupted("the engine was asked to stop; what the call had accumulated was dropped")

    def score(self, work: Pass, returns: Collection[str], *, train: bool = False) -> list[dict[str, NDArray[Any]]]:
        """Outputs per example, by name, as arrays; `hidden` and `logits` at every position.

        Args:
            train: with the dropout of the pass's backward, where a loss or the gradients are checked.

        Raises:
            NotFinite: outputs that no backward pass follows are not finite; names the examples.
        """
        outputs: list[dict[str, NDArray[Any]]] = [{} for _ in work.data]
        for batch in work.computed:
            with self._as(work, batch, train=train):
                with span(GRAPH):
                    computed = self._network.outputs(self._rectangle(work, batch), returns, everywhere=True)
                with span(COMPUTE):
                    mx.eval(computed)
                self._keep(outputs, work, batch, computed)
        if not train:
            check_outputs(work.data, outputs)
        return outputs

    def evaluate(
        self, work: Pass, masters: NamedArrays, *, train: bool, backward: bool = False, returns: Collection[str] = ()
    ) -> Differentiated:
        """Evaluate the loss of `work`; with `backward`, its gradients too.

        Args:
            masters: the weights that train.
            train: with dropout.
            returns: outputs to return per example, of those that the loss needs.

        Raises:
            NotFinite: the loss is not finite; names the examples.
        """
        spec = work.spec
        assert spec is not None
        evaluated = Differentiated([{} for _ in work.data], Totals(spec, work.counts), dict(work.state))
        batches = work.batches
        if spec.together == "step" and len(batches) > 1:
            batches = (replace(one_batch(work.data), pieces=batches),)
        for batch in batches:
            if batch.pieces:
                self._evaluate_pieces(work, batch, evaluated, masters, train=train, backward=backward, returns=returns)
                continue
            outputs: Outputs = {}

            def objective(weights: NamedArrays, batch: MicroBatch = batch, outputs: Outputs = outputs) -> mx.array:
                self._network.place(weights)
                outputs |= self._outputs(spec, self._rectangle(work, batch), train=train)
                return self._loss(work, batch, outputs, evaluated)

            with self._as(work, batch, train=train):
                value = self._differentiate(objective, masters, evaluated, backward=backward)
                self._check(value, work, batch, outputs)
            self._keep(evaluated.outputs, work, batch, {k: v for k, v in outputs.items() if k in returns})
        return evaluated

    def backward_from(
        self, work: Pass, masters: NamedArrays, grads: Sequence[NDArray[np.floating[Any]]]
    ) -> NamedArrays:
        """Gradients from dL/dlogprob per example, in the shape of its targets."""
        evaluated = Differentiated([])
        for batch in work.computed:
            slopes = to_mx(side_by_side(batch, grads))

            def objective(weights: NamedArrays, batch: MicroBatch = batch, slopes: mx.array = slopes) -> mx.array:
                self._network.place(weights)
                outputs = self._network.outputs(self._rectangle(work, batch), ("logprobs",))
                return mx.sum(outputs["logprobs"] * slopes)

            with self._as(work, batch, train=True):
                self._differentiate(objective, masters, evaluated, backward=True)
        return evaluated.grads

    # --- a loss that reads more than one micro-batch
    # -------------------------------------------------------------------

    def _evaluate_pieces(
        self, work: Pass, whole: MicroBatch, evaluated: Differentiated, masters: NamedArrays, *, train: bool,
        backward: bool, returns: Collection[str],
    ) -> None:  # fmt: skip
        """Compute outputs without a graph, evaluate the loss once on them, then backpropagate its gradient piece by
        piece."""
        assert work.spec is not None and evaluated.totals is not None
        spec = work.spec
        scored: list[dict[str, NDArray[Any]]] = [{} for _ in work.data]
        for piece in whole.pieces:
            with self._as(work, piece, train=train):
                of_piece = self._outputs(spec, self._rectangle(work, piece), train=train)
                self._keep(scored, work, piece, of_piece)
        leaves = {
            name: to_mx(side_by_side(whole, {row: scored[row][name] for row in whole.rows}))
            for name in scored[whole.rows[0]]
        }
        policy = {name: leaf for name, leaf in leaves.items() if "@" not in name}

        def of_leaves(given: Outputs) -> mx.array:
            return self._loss(work, whole, {**leaves, **given}, evaluated)

        if backward and policy:
            value, slopes = mx.value_and_grad(of_leaves)(policy)
        else:
            value, slopes = of_leaves(policy), {}
        self._check(value, work, whole, leaves)
        self._keep(evaluated.outputs, work, whole, {k: v for k, v in leaves.items() if k in returns})
        if not backward:
            return
        pulling: dict[str, dict[int, NDArray[Any]]] = {
            name: per_datum(work.data, whole, slope) for name, slope in slopes.items()
        }
        for piece in whole.pieces:
            pull = {name: to_mx(side_by_side(piece, of)) for name, of in pulling.items()}

            def again(weights: NamedArrays, piece: MicroBatch = piece, pull: Outputs = pull) -> mx.array:
                self._network.place(weights)
                outputs = self._network.outputs(self._rectangle(work, piece), list(pull), **_asked(spec))
                return mx.sum(mx.stack([mx.sum(outputs[name] * of) for name, of in pull.items()]))

            with self._as(work, piece, train=True):
                self._differentiate(again, masters, evaluated, backward=bool(pull))

    # --- parts --------------------------------------------------------------------------------------------------------

    def _differentiate(
        self,
        objective: Callable[[NamedArrays], mx.array],
        masters: NamedArrays,
        evaluated: Differentiated,
        *,
        backward: bool,
    ) -> mx.array:
        """The value of a function of the trainable parameters; its gradients are added to `evaluated`."""
        if not backward:
            with span(GRAPH):
                value = objective(masters)
            with span(COMPUTE):
                mx.eval(value)
            return value
        with span(GRAPH):
            value, grads = mx.value_and_grad(objective)(masters)
            before = evaluated.grads
            evaluated.grads = {n: g if not before else before[n] + g for n, g in grads.items()}
        with span(COMPUTE):
            mx.eval(value, evaluated.grads)
        return value

    def _outputs(self, spec: LossSpec, rectangle: Rows, *, train: bool) -> Outputs:
        """The outputs that the loss needs: `NAME` of the pass's role with a graph, `NAME@ROLE` of other roles
        without."""
        outputs: Outputs = {}
        for role in sorted(spec.roles):
            needs = [need.split("@", 1)[0] for need in spec.needs if need.endswith(f"@{role}")]
            self._network.train(False)
            with self._network.role(role):
                of_role = self._network.outputs(rectangle, needs, **_asked(spec))
            outputs.update({f"{name}@{role}": mx.stop_gradient(values) for name, values in of_role.items()})
        self._network.train(train)
        own = [need for need in spec.needs if "@" not in need]
        outputs.update(self._network.outputs(rectangle, own, **_asked(spec)))
        return outputs

    def _loss(self, work: Pass, batch: MicroBatch, outputs: Outputs, evaluated: Differentiated) -> mx.array:
        assert work.spec is not None and evaluated.totals is not None
        seen = loss_data(work.data, batch, to_mx)
        state = {name: to_mx(v) if isinstance(v, np.ndarray) else v for name, v in work.state.items()}
        result = work.spec.fn(outputs, seen, state)
        value: mx.array = evaluated.totals.add(result, mx.zeros(()))
        evaluated.state = checked_state(work.spec, work.state, result.state)
        return value

    def _check(self, value: mx.array, work: Pass, batch: MicroBatch, outputs: Outputs) -> None:
        assert work.spec is not None
        check_finite(
            value,
            work.spec,
            data=work.data,
            batch=batch,
            outputs=outputs,
            step=work.step,
            action="look at these rows, lower optimizer.learning_rate, or set train.precision to fp32",
        )

    def _rectangle(self, work: Pass, batch: MicroBatch) -> Rows:
        return make_rectangle(work.data, batch, pad_id=self._pad_id, convert=np.asarray)

    @contextmanager
    def _as(self, work: Pass, batch: MicroBatch, *, train: bool) -> Iterator[None]:
        """The model as the pass's role, in training or evaluation mode, with dropout keys for each row."""
        self.check_asked()
        pieces = tuple(pieces_of(work.data[row], n) for row, n in zip(batch.rows, batch.lengths, strict=True))
        segmented = any(len(of) > 1 for of in pieces)
        keys = np.stack([position_keys(self._seed, work.step, work.places[row], batch.width) for row in batch.rows])
        with self._network.role(work.role), self._network.keyed(keys, batch, pieces if segmented else None):
            self._network.train(train)
            yield

    def _keep(
        self, outputs: list[dict[str, NDArray[Any]]], work: Pass, batch: MicroBatch, computed: Mapping[str, mx.array]
    ) -> None:
        for name, values in computed.items():
            for index, array in per_datum(work.data, batch, values).items():
                outputs[index][name] = array


def _asked(spec: LossSpec) -> dict[str, Any]:
    """The sampling settings of the policy that a loss evaluates."""
    return {"temperature": spec.temperature, "repetition_penalty": spec.repetition_penalty}
