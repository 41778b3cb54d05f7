"""The model that trains: its roles, and log-probabilities from hidden states.

Forward and backward hold the logits of one chunk of positions at a time, and only where the mask is true.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from finetooth_hooks import OutputName, PlanError
from finetooth_hooks.protocols import Adapter, ModelFacts
from finetooth_steps.draws import Words
from finetooth_steps.micro_batches import MicroBatch
from finetooth_steps.placed_rows import Placed, place_rows
from finetooth_steps.rectangles import Rectangle
from finetooth_steps.segments import Piece
from numpy.typing import NDArray

from finetooth_mlx.arrays import DTYPES, NamedArrays, named, nested, to_mx
from finetooth_mlx.dropout import Draws
from finetooth_mlx.heads import scores, values
from finetooth_mlx.packing import Segments, obstacle
from finetooth_mlx.planning import CHUNK, MOST_POSITIONS

OUTPUTS = ("logprobs", "entropy", "hidden", "logits")
HEAD_OUTPUTS = ("values", "scores")
Pieces = Sequence[Sequence[Piece]]
Rows = Rectangle[NDArray[Any]]
"""A rectangle in NumPy, which decides the positions that count, before it becomes arrays of MLX."""


class Network:
    """Computes the outputs of a role.

    Args:
        model: with the adapter; its trainable parameters train.
        checkpointing: decoder layers are computed again in backward.
        noise: alpha of the noise on the policy's embeddings; 0 is none.
    """

    def __init__(
        self, model: Any, facts: ModelFacts, adapter: Adapter, *, precision: str, can_disable: bool,
        checkpointing: bool, noise: float = 0.0,
    ) -> None:  # fmt: skip
        self.model, self.facts, self.adapter, self.can_disable = model, facts, adapter, can_disable
        self.body = _module(model, facts.body)
        self._embedding = None if _has(model, facts.head.module) else _module(model, f"{facts.body}.embed_tokens")
        self._head = self._embedding if self._embedding is not None else _module(model, facts.head.module)
        trained = named(model.trainable_parameters())
        # an adapter on a frozen base computes in fp32; weights of the base have additional masters in fp32
        self._types = {n: a.dtype if can_disable else DTYPES[precision] for n, a in trained.items()}
        self.initial: NamedArrays = {name: array.astype(mx.float32) for name, array in trained.items()}
        self.has_head = getattr(model, "asked_head", None) is not None
        self.holders: dict[str, NamedArrays | Network] = {}
        """Computes the roles other than the policy: earlier weights of the policy, or another model."""
        self._acting: Network | None = None
        self._read: list[mx.array] | None = None
        self._draws: Draws = getattr(model, "draws", None) or Draws()
        for layer in _module(model, facts.layer_path):
            if checkpointing:
                _recompute(layer)
            around(layer, self._reading)
        if noise:
            around(
                _module(model, f"{facts.body}.embed_tokens"),
                lambda module, call, x: self._draws.noisy(call(x), noise) if module.training else call(x),
            )
        self.place(self.initial)
        model.eval()
        self.obstacle = obstacle(self.body, facts.layers, facts.vocab_size)

    def place(self, masters: Mapping[str, mx.array]) -> None:
        """Compute with these weights."""
        self._placed = masters
        self.model.update(nested({name: array.astype(self._types[name]) for name, array in masters.items()}))

    @property
    def computing(self) -> NamedArrays:
        """The trainable parameters in the precision in which they compute: weights of the base in the run's."""
        return named(self.model.trainable_parameters())

    def train(self, mode: bool) -> None:
        """Whether dropout is on."""
        self.model.train(mode)

    def keyed(self, keys: Words, batch: MicroBatch, pieces: Pieces | None) -> AbstractContextManager[None]:
        """A `with` block in which positions of the micro-batch have these dropout keys, (S, T, 2)."""
        placed, lengths = placed_rows(batch, pieces), np.array(batch.lengths)
        if placed is not None:
            keys, lengths = keys.reshape(-1, 2)[placed.source], lengths[placed.source // batch.width]
        return self._draws.keyed(keys, lengths)

    def role(self, role: str) -> AbstractContextManager[None]:
        """A `with` block in which outputs are those of a role.

        Raises:
            PlanError: no role has this name.
        """
        if role == "policy":
            return nullcontext()
        if role in self.holders:
            return self.holding(self.holders[role])
        if role != "reference":
            raise PlanError(
                f"method: it needs the role {role!r}, which the MLX backend has not", action="set backend: torch"
            )
        if not self.can_disable:
            raise PlanError(
                "method: it needs the reference role, but the adapter cannot be switched off",
                action="choose an adapter that can be disabled, such as a low-rank one",
            )
        return self.adapter.disabled(self.model)

    @property
    def rows_obstacle(self) -> str:
        """Why this model or a role's model cannot keep segments of a row apart; empty if it can."""
        others = [holder.obstacle for holder in self.holders.values() if isinstance(holder, Network)]
        return next(filter(None, [self.obstacle, *others]), "")

    @property
    def copies(self) -> dict[str, NamedArrays]:
        """The roles that are copies of the policy."""
        return {role: holder for role, holder in self.holders.items() if not isinstance(holder, Network)}

    @contextmanager
    def holding(self, holder: NamedArrays | Network) -> Iterator[None]:
        """A `with` block in which another model computes, or this one with other weights."""
        placed, before = self._placed, self.computing
        if isinstance(holder, Network):
            holder.train(False)
            self._acting = holder
        else:
            self.place(holder)
        try:
            yield
        finally:
            self._acting = None
            if not isinstance(holder, Network):
                self._placed = placed
                self.model.update(nested(before))

    def _reading(
        self, layer: Any, call: Callable[..., mx.array], hidden: mx.array, *given: Any, **more: Any
    ) -> mx.array:
        if self._read is not None:
            self._read.append(hidden)
        return call(hidden, *given, **more)

    # --- outputs ------------------------------------------------------------------------------------------------------

    def outputs(
        self,
        rectangle: Rows,
        needs: Collection[str],
        *,
        everywhere: bool = False,
        temperature: float = 1.0,
        repetition_penalty: float = 1.0,
    ) -> dict[str, mx.array]:
        """The outputs in `needs`: `logprobs` (S, T) or (S, T, K), `entropy` (S, T), `hidden` (S, T, D), or of a layer
        (`hidden:0.5`), `logits` (S, T, V); with a scalar head `values` (S, T) and `scores` (S,).

        Args:
            everywhere: hidden and logits at every position, not only where the mask is true (0 elsewhere).
            temperature, repetition_penalty: of `logprobs` and `entropy`; `logits` are unchanged.

        Raises:
            PlanError: an unknown output.
        """
        if self._acting is not None:
            return self._acting.outputs(
                rectangle, needs, everywhere=everywhere, temperature=temperature, repetition_penalty=repetition_penalty
            )
        depths = self._depths(needs)
        read = self._states(rectangle, read=bool(depths))
        hidden = read[-1]
        computed: dict[str, mx.array] = {}
        if repetition_penalty != 1 and rectangle.pieces is not None:
            raise PlanError("repetition_penalty: the data have segments of their own", action="leave it at 1")
        if {"logprobs", "entropy"} & set(needs):
            part = self._part("entropy" in needs, temperature, repetition_penalty)
            computed |= self._scores(rectangle, hidden, part, entropy="entropy" in needs, seen=repetition_penalty != 1)
            if "logprobs" not in needs:
                del computed["logprobs"]
        mask = to_mx(rectangle.mask)
        if set(HEAD_OUTPUTS) & set(needs):
            of_head = mx.where(mask, values(self.model, hidden), 0.0)
            both = {"values": of_head, "scores": scores(of_head, rectangle.mask)}
            computed |= {name: both[name] for name in HEAD_OUTPUTS if name in needs}
        whole = {need: read[number].astype(mx.float32) for need, number in depths.items()}
        if "logits" in needs:
            whole["logits"] = self.logits(hidden)
        return computed | {n: a if everywhere else mx.where(mask[..., None], a, 0.0) for n, a in whole.items()}

    def _states(self, rectangle: Rows, *, read: bool) -> list[mx.array]:
        """(S, T, D) states after the last layer; with `read`, the inputs of each layer come before them."""
        placed = placed_rows(rectangle.batch, rectangle.pieces)
        tokens = rectangle.tokens if placed is None else rectangle.tokens.reshape(-1)[placed.source]
        cache = None if placed is None else [Segments(placed.segments)] * self.facts.layers
        self._read = [] if read else None
        hidden = self.body(to_mx(tokens), cache=cache)
        states, self._read = [*(self._read or ()), hidden], None
        if placed is None:
            return states
        cells = mx.array(placed.cells.astype(np.int32))
        return [of.reshape(-1, of.shape[-1])[cells] for of in states]

    def _depths(self, needs: Collection[str]) -> dict[str, int]:
        """The numbers of the layers whose hidden states `needs` names.

        Raises:
            PlanError: no layer has this name.
        """
        depths: dict[str, int] = {}
        known = OUTPUTS + HEAD_OUTPUTS * self.has_head
        for need in needs:
            name = OutputName.of(need)
            if name.kind == "hidden":
                depths[need] = name.layer(self.facts.layers)
            elif need not in known:
                raise PlanError(
                    f"loss: it needs the output {need!r}, which the MLX backend does not have"
                    + " without a scalar head" * (need in HEAD_OUTPUTS),
                    action=f"choose a loss that reads {', '.join(known)}, or set backend: torch",
                )
        return depths

    def logits(self, hidden: mx.array) -> mx.array:
        """(..., V) in fp32."""
        head = self.facts.head
        plain = self._head(hidden) if self._embedding is None else self._embedding.as_linear(hidden)
        scaled = plain.astype(mx.float32)
        scaled = scaled if head.scale == 1.0 else scaled * head.scale
        return scaled if head.softcap is None else mx.tanh(scaled / head.softcap) * head.softcap

    def _scores(
        self, rectangle: Rows, hidden: mx.array, part: Callable[..., list[mx.array]], *, entropy: bool, seen: bool
    ) -> dict[str, mx.array]:
        shape = rectangle.targets.shape
        cells = shape[0] * shape[1]
        places = np.flatnonzero(rectangle.mask)
        targets = rectangle.targets.reshape(cells, *shape[2:])[places]
        outputs = {"logprobs": mx.zeros((cells, *shape[2:]), mx.float32)}
        if entropy:
            outputs["entropy"] = mx.zeros((cells,), mx.float32)
        states = hidden.reshape(cells, -1)[mx.array(places.astype(np.int32))] if len(places) else hidden[:0]
        size = max(1, min(MOST_POSITIONS, CHUNK // (4 * self.facts.vocab_size)))
        run = part if len(places) <= size else mx.checkpoint(part)
        weights = self._head.trainable_parameters()
        first = first_places(rectangle.tokens, self.facts.vocab_size) if seen else None
        pieces = []
        for at in range(0, len(places), size):
            rows, columns = np.divmod(places[at : at + size], shape[1])
            before = [] if first is None else [to_mx(first[rows] <= columns[:, None])]
            pieces.append(run(weights, states[at : at + size], to_mx(targets[at : at + size]), *before))
        for i, name in enumerate(outputs):
            if pieces:
                whole = mx.concatenate([piece[i] for piece in pieces])
                outputs[name] = outputs[name].at[mx.array(places.astype(np.int32))].add(whole)
            outputs[name] = outputs[name].reshape(shape if name == "logprobs" else shape[:2])
        return outputs

    def _part(self, entropy: bool, temperature: float, penalty: float) -> Callable[..., list[mx.array]]:
        """Log-probabilities, and entropies, of a chunk of positions."""

        def part(weights: Any, states: mx.array, targets: mx.array, *seen: mx.array) -> list[mx.array]:
            self._head.update(weights)
            logits = self.logits(states)
            for of in seen:
                logits = mx.where(of, mx.where(logits < 0, logits * penalty, logits / penalty), logits)
            logits = logits if temperature == 1.0 else logits / temperature
            total = mx.logsumexp(logits, axis=-1, keepdims=True)
            wide = mx.stop_gradient(targets.reshape(targets.shape[0], -1))  # an argument: it is computed twice
            logprobs = (mx.take_along_axis(logits, wide, axis=-1) - total).reshape(targets.shape)
            if not entropy:
                return [logprobs]
            rest = logits - total
            return [logprobs, -mx.sum(mx.exp(rest) * rest, axis=-1)]

        return part


def placed_rows(batch: MicroBatch, pieces: Pieces | None) -> Placed | None:
    """The places of examples that share rows or have segments; None: each has its own row."""
    return place_rows(batch, pieces) if batch.filled or pieces is not None else None


def first_places(tokens: NDArray[Any], vocabulary: int) -> NDArray[Any]:
    """(S, V) the first position of each token in a row (S, T); T if it does not occur."""
    first = np.full((len(tokens), vocabulary), tokens.shape[1])
    for column in reversed(range(tokens.shape[1])):
        first[np.arange(len(tokens)), tokens[:, column]] = column
    return first


def _has(model: Any, path: str) -> bool:
    try:
        _module(model, path)
    except PlanError:
        return False
    return True


def _module(model: Any, path: str) -> Any:
    """
    Raises:
        PlanError: the family's facts name a module that mlx-lm's model has not.
    """
    module = model
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part, None)
        if module is None:
            raise PlanError(
                f"model: mlx-lm's class of it has no module {path}, which its family names", action="set backend: torch"
            )
    return module


def around(module: Any, run: Callable[..., mx.array]) -> None:
    """Make calls of a module run `run(module, its original call, ...)`."""
    plain = type(module)

    def call(self: Any, *given: Any, **more: Any) -> mx.array:
        return run(self, partial(plain.__call__, self), *given, **more)

    module.__class__ = type(plain.__name__, (plain,), {"__call__": call})


def _recompute(layer: Any) -> None:
    """Make a layer keep only its input and recompute itself in the backward pass."""
    plain = type(layer)
    call: Any = plain.__call__

    def recomputed(self: Any, *given: Any, **named_: Any) -> Any:
        if not self.training:
            return call(self, *given, **named_)

        def run(parameters: Any, *arrays: mx.array) -> Any:
            self.update(parameters)
            left = iter(arrays)  # a function that is computed twice takes only arrays
            whole = [next(left) if isinstance(value, mx.array) else value for value in (*given, *named_.values())]
            return call(self, *whole[: len(given)], **dict(zip(named_, whole[len(given) :], strict=True)))

        arrays = [value for value in (*given, *named_.values()) if isinstance(value, mx.array)]
        return mx.checkpoint(run)(self.trainable_parameters(), *arrays)

    layer.__class__ = type(f"Recomputed{plain.__name__}", (plain,), {"__call__": recomputed})
