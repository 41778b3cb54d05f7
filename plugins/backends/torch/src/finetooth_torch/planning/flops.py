"""Floating-point operations that a step executes, counted from sizes: pure, no framework.

A matrix product of (P, I) with (I, O) takes 2 P I O. For P positions that go through a layer, each linear module of I
inputs and O outputs takes

    forward      2 P I O,      and with a low-rank addition of rank r  2 P r (I + O)
    backward     2 P I O       for the gradient of its input, if anything before it trains
                 2 P I O       for the gradient of its weight, if that trains
                 2 P r (I + O) for the gradients of the addition's two matrices, 2 P r O between them, and 2 P r I for
                               the gradient of the addition's input, if anything before it trains

Attention of width W (heads times head size) over segments of L positions looks at L (L + 1) / 2 pairs a segment where
it skips what is masked, at L^2 where it does not. A product over the pairs takes 2 W each: two of them forward, four
backward, and one more where the backward pass forms the scores again. The head of a vocabulary V over R rows is a
linear module of D inputs and V outputs with one more product where its logits are formed again. Checkpointing adds the
layers' forward to the backward pass.

Not counted, because small: norms, activations, rotations, softmax, losses, the optimizer, and what a particular adapter
does in addition to its products (DoRA's lengths). So element-wise work shows only as a lower utilisation, the figure's
purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.protocols import LayerFacts, ModelFacts
from finetooth_toolbox.llama_shape import linear_shapes, linears, targeted

LAST_OF_ATTENTION = ("o_proj", "out_proj", "dense")
LAST_OF_FEED_FORWARD = ("down_proj", "fc2", "w2", "output_linear")
"""Names of the linear modules that write back to the hidden state; all others read it."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a step or a part of one."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class Linear:
    """A linear module.

    Attributes:
        inputs, outputs: its sizes.
        stage: its place in the layer: 0 reads the layer's input, 1 is attention's output, 2 reads the feed-forward's
            input, 3 is its output.
        trained: its weight trains.
        rank: of its low-rank adapter; 0: none.
    """

    inputs: int
    outputs: int
    stage: int = 0
    trained: bool = False
    rank: int = 0

    def forward(self, positions: int) -> float:
        return 2.0 * positions * (self.inputs * self.outputs + self.rank * (self.inputs + self.outputs))

    def backward(self, positions: int, *, into_input: bool) -> float:
        """Returns the floating-point operations of the layer's backward.

        Args:
            into_input: something before it trains.
        """
        size = self.inputs * self.outputs
        addition = self.rank * (self.inputs + 2 * self.outputs + (self.inputs if into_input else 0))
        return 2.0 * positions * (size * into_input + size * self.trained + addition)


@dataclass(frozen=True)
class Layer:
    """A decoder layer.

    Attributes:
        linears: its linear modules, in any order; the experts of a token as one.
        norms: whether the weight of one of its norms trains.
        width: query heads times head size, the mean of those of keys and of values; None: the model's.
        window: positions that each position sees; 0: all.
        state: numbers of a sequence's recurrent state, read and written at each position.
        chunked: operations within a chunk, per position.
    """

    linears: tuple[Linear, ...]
    norms: bool = False
    width: float | None = None
    window: int = 0
    state: int = 0
    chunked: int = 0


@dataclass(frozen=True)
class ModelCost:
    """The products of a model, and which weights train.

    Attributes:
        layers: from the embedding to the head.
        attention_width: query heads times head size.
        head: hidden state to vocabulary.
        embedding: the embedding trains.
    """

    layers: tuple[Layer, ...]
    attention_width: int
    head: Linear
    embedding: bool = False


@dataclass(frozen=True)
class Execution:
    """Properties of an implementation.

    Attributes:
        skips_masked: attention skips masked pairs.
        rescores: attention's backward pass forms its scores again.
        relogits: the backward pass of a head that trains forms the logits again.
        checkpointing: the backward pass computes the layers again.
    """

    skips_masked: bool = True
    rescores: bool = True
    relogits: bool = True
    checkpointing: bool = False


PLAIN = Execution(skips_masked=False, rescores=False, relogits=False)
"""Separate products, with everything kept for the backward pass."""


@dataclass(frozen=True)
class Computed:
    """Sizes of one micro-batch.

    Attributes:
        segments: lengths of parts that attend to themselves, with padding if it is computed; their sum is the number of
            positions in the layers.
        head_rows: positions in the head.
        across: attended pairs in different segments, as with a shared beginning.
        last_rows: positions that continue after the last layer's attention; None: all.
    """

    segments: tuple[int, ...]
    head_rows: int
    across: float = 0.0
    last_rows: int | None = None

    @property
    def positions(self) -> int:
        """Positions in the layers."""
        return sum(self.segments)

    def pairs(self, *, skips_masked: bool, window: int = 0) -> float:
        """Pairs of positions that attention computes.

        Args:
            window: positions that each sees, if masked pairs are skipped; 0: all.
        """
        if not skips_masked:
            return sum(float(n * n) for n in self.segments) + self.across
        beyond = (max(0, n - window) if window else 0 for n in self.segments)
        own = sum(n * (n + 1) / 2 - left * (left + 1) / 2 for n, left in zip(self.segments, beyond, strict=True))
        return own + self.across


def count(model: ModelCost, batches: Iterable[Computed], how: Execution | None = None) -> Flops:
    """Of one forward and backward over the micro-batches; a pass without gradients is its `forward`.

    Args:
        model: from `cost_of` or `planned_cost`; make it once, not every step.
        how: default: the engine's, for a loss that does not announce its gradient.
    """
    how = how or Execution()
    total = Flops()
    for batch in batches:
        total += _layers(model, batch, how) + _head(model, batch, how)
    return total


def _layers(model: ModelCost, batch: Computed, how: Execution) -> Flops:
    positions = batch.positions
    forward = backward = 0.0
    trains = model.embedding
    for place, layer in enumerate(model.layers):
        for stage in range(4):
            here = [linear for linear in layer.linears if linear.stage == stage]
            # the norm in front of stages 0 and 2; one flag for both is exact unless only one of the two trains
            into_input = trains or (layer.norms and stage in (0, 2))
            if stage == 1 and place == len(model.layers) - 1 and batch.last_rows is not None:
                positions = batch.last_rows
            forward += sum(linear.forward(positions) for linear in here)
            backward += sum(linear.backward(positions, into_input=into_input) for linear in here)
            trains = into_input or any(linear.trained or linear.rank for linear in here)
            if stage == 0:
                width = model.attention_width if layer.width is None else layer.width
                product = 2.0 * width * batch.pairs(skips_masked=how.skips_masked, window=layer.window)
                stateful = (4.0 * layer.state + 2.0 * layer.chunked) * positions
                forward += 2 * product + stateful
                backward += (4 + how.rescores) * product + 2 * stateful if trains else 0.0
    return Flops(forward, backward + (forward if how.checkpointing else 0.0))


def _head(model: ModelCost, batch: Computed, how: Execution) -> Flops:
    head, trains = model.head, bool(model.embedding or trained_layers(model))
    forward = head.forward(batch.head_rows)
    backward = head.backward(batch.head_rows, into_input=trains)
    return Flops(forward, backward + (forward if how.relogits and (head.trained or head.rank) else 0.0))


def trained_layers(model: ModelCost) -> int:
    """The number of layers with trained weights."""
    return sum(layer.norms or any(linear.trained or linear.rank for linear in layer.linears) for layer in model.layers)


def planned_cost(
    facts: ModelFacts, *, full: bool = False, rank: int = 0, targets: Sequence[str] | None = None
) -> ModelCost:
    """The cost from a family's facts, for layers built like Llama's or described one by one.

    Args:
        full: everything trains.
        rank: of a low-rank adapter on `targets`; 0: none.
        targets: names of linear modules; default: all of a layer.
    """
    carries = facts.linear_targets if targets is None else targets
    head = Linear(facts.hidden_size, facts.vocab_size, trained=full)
    width = facts.heads * facts.head_dim
    if facts.per_layer:
        layers = tuple(
            _layer(
                layer,
                facts,
                {
                    path: Linear(*shape, _stage_in(path, layer), full, rank if targeted(path, carries) else 0)
                    for path, shape in linears(layer).items()
                },
                trained=full,
                norms=full,
            )
            for layer in facts.per_layer
        )
        return ModelCost(layers, width, head, embedding=full)
    known, square = linear_shapes(facts), (facts.hidden_size, facts.hidden_size)
    modules = tuple(
        Linear(
            *known.get(name.rsplit(".", 1)[-1], square),
            stage=_stage(name, facts),
            trained=full,
            rank=rank if name in carries else 0,
        )
        for name in facts.linear_targets
    )
    return ModelCost((Layer(modules, norms=full),) * facts.layers, width, head, embedding=full)


def cost_of(model: Any, facts: ModelFacts) -> ModelCost:
    """The cost from a built model with any adapter.

    Args:
        model: modules with `named_modules` and parameters that know whether they train; module paths as in `facts`.
    """
    layers = []
    for number, layer in enumerate(model.get_submodule(facts.layer_path)):
        named, own_facts = dict(layer.named_modules()), facts.per_layer[number] if facts.per_layer else None
        stages = (
            {path: _stage(path, facts) for path in named if targeted(path, facts.linear_targets)}
            if own_facts is None
            else {path: _stage_in(path, own_facts) for path in linears(own_facts)}
        )
        counted = {path: _linear(named[path], stage) for path, stage in stages.items()}
        inside = {id(p) for path in counted for p in named[path].parameters()}
        trained = any(p.requires_grad and p.ndim > 1 for p in layer.parameters() if id(p) not in inside)
        norms = any(p.requires_grad for p in layer.parameters() if id(p) not in inside)
        layers.append(_layer(own_facts, facts, counted, trained=trained, norms=norms))
    head = _linear(model.get_submodule(facts.head.module), 0)
    embedding = any(p.requires_grad for p in model.get_input_embeddings().parameters())
    return ModelCost(
        tuple(layers),
        facts.heads * facts.head_dim,
        head or Linear(facts.hidden_size, facts.vocab_size),
        embedding=embedding,
    )


def _layer(
    own_facts: LayerFacts | None, facts: ModelFacts, counted: Mapping[str, Linear | None], *, trained: bool, norms: bool
) -> Layer:
    """A layer from its counted linear modules, with the experts of its facts.

    Args:
        trained: weights of experts train.
    """
    modules = tuple(linear for linear in counted.values() if linear is not None)
    if own_facts is None:
        return Layer(modules, norms)
    if experts := own_facts.experts:
        hidden, width = facts.hidden_size, experts.active * experts.width
        modules += (
            Linear(hidden, experts.count, 2, trained),
            Linear(hidden, (1 + experts.gated) * width, 2, trained),
            Linear(width, hidden, 3, trained),
        )
    attended = own_facts.heads * (own_facts.head_dim + (own_facts.value_dim or own_facts.head_dim)) / 2
    return Layer(modules, norms, attended, own_facts.window, own_facts.state, own_facts.chunked)


def _stage_in(path: str, layer: LayerFacts) -> int:
    name = path.rsplit(".", 1)[-1]
    if path in layer.mixing:
        return 1 if name in LAST_OF_ATTENTION else 0
    return 3 if name in LAST_OF_FEED_FORWARD else 2


def _stage(path: str, facts: ModelFacts) -> int:
    name = path.rsplit(".", 1)[-1]
    attention = targeted(path, facts.attention_targets)
    if attention:
        return 1 if name in LAST_OF_ATTENTION else 0
    return 3 if name in LAST_OF_FEED_FORWARD else 2


def _linear(module: Any, stage: int) -> Linear | None:
    """A linear module, or one that an adapter put around it; None if there is none inside.

    The rank follows from the number of parameters that the adapter added: r (I + O).
    """
    inner = next((m for m in module.modules() if hasattr(m, "in_features") and not hasattr(m, "base_layer")), None)
    if inner is None:
        return None
    own = {id(p) for p in inner.parameters(recurse=False)}
    added = sum(p.numel() for p in module.parameters() if p.requires_grad and id(p) not in own)
    trained = any(p.requires_grad for p in inner.parameters(recurse=False))
    inputs, outputs = int(inner.in_features), int(inner.out_features)
    return Linear(inputs, outputs, stage, trained, added // (inputs + outputs))
