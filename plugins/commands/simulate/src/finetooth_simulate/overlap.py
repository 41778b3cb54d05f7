"""How long a step takes whose ranks gather each layer while the one before computes.

Torch's `fully_shard` asks for one layer ahead: forward in the order of layers, backward in the reverse order, where the
sums of a layer's gradients go over the link while the layer before it computes. So a layer takes as long as what lasts
longer, its computing or what goes over the link meanwhile. Nothing computes while the first layer comes, nor while the
first layer's gradients and those outside of layers go; what lies outside comes first in either direction, and of it the
head computes. A link carries one thing at a time.

What is assumed: a rank computes all its operations at one rate, two for each weight and position forward, as many for
the gradients of activations, for those of weights that train, and for layers that are computed again. The products
between positions, the optimizer and the host are left out. Other exchanges hide behind nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_hooks.protocols import Foreseen, Traffic

from finetooth_simulate.links import Link, sent


@dataclass(frozen=True)
class Pass:
    """A micro-batch, forward and back. Lists have a number for forward and one for backward.

    Attributes:
        layers: of the model.
        layer, head: what one of them computes, or the head.
        gathered, outside: what is given of a layer, and of what lies in no layer, before it computes.
        summed, outside_summed: what is given of their gradients.
    """

    layers: int
    layer: tuple[float, float]
    head: tuple[float, float]
    gathered: tuple[float, float]
    outside: tuple[float, float]
    summed: float
    outside_summed: float

    @property
    def computing(self) -> float:
        """All that is computed."""
        return sum(self.layers * layer + head for layer, head in zip(self.layer, self.head, strict=True))

    @property
    def given(self) -> float:
        """All that goes over the link."""
        gathered = sum(
            self.layers * layer + outside for layer, outside in zip(self.gathered, self.outside, strict=True)
        )
        return gathered + self.layers * self.summed + self.outside_summed

    def lasts(self) -> float:
        """From its beginning to its end, where all are seconds."""
        (forward, backward), (next_layer, layer_before), more = self.layer, self.gathered, self.layers - 1
        there = self.outside[0] + next_layer + more * max(forward, next_layer) + forward + self.head[0]
        back = self.outside[1] + max(self.head[1], layer_before)
        if more:  # the last layer has no gradients to send before it, and the first none to gather
            middle = max(backward, layer_before + self.summed)
            back += max(backward, layer_before) + (more - 1) * middle + max(backward, self.summed)
        else:
            back += backward
        return there + back + self.summed + self.outside_summed


@dataclass(frozen=True)
class Overlap:
    """Seconds of a step.

    Attributes:
        step: from its beginning to its end, without the optimizer.
        computing, link: what is computed, and what goes over links.
        hidden: of what goes over links, what nothing waits for.
    """

    step: float
    computing: float
    link: float
    hidden: float

    @classmethod
    def of(cls, one: Pass, passes: int, apart: float) -> Overlap:
        """Of so many passes, and of exchanges that nothing hides."""
        step, computing, link = passes * one.lasts() + apart, passes * one.computing, passes * one.given + apart
        return cls(step, computing, link, computing + link - step)


def pass_of(traffic: Traffic, run: Foreseen, trained: int, *, head: int, divided: int, rate: float, link: Link) -> Pass:
    """Seconds of a pass.

    Args:
        traffic: weights and gradients of all passes of a step, which are gathered and summed layer by layer.
        trained: numbers that train.
        head: numbers of the head.
        divided: ranks that compute together, each with a part of every layer and the whole head.
        rate: operations per second of a rank.
        link: that the exchanges go over.
    """
    parts, layers = traffic.peers, run.layers
    outside_trained = run.trained_outside(trained)
    sums = [4 * (trained - outside_trained) // divided / layers / parts, 4 * outside_trained / parts]
    layer, outside = (run.weights - run.outside) / divided / layers / parts, run.outside / parts
    once = layers * layer + outside
    again = traffic.sent / run.passes - layers * sums[0] - sums[1] - once  # what the backward pass gathers
    if again < 0:  # the strategy gathers less than the weights as the model computes with them
        less = (once + again) / 2 / once
        layer, outside, again = layer * less, outside * less, (once + again) / 2
    kept = max(0.0, again - outside) < layer  # the layers; what lies in none is gathered again in any case
    operations = 2 * run.positions / rate
    weights = (run.weights - run.outside) // run.size // divided // layers
    backward = 1 + (trained * run.size >= run.weights)
    numbers = {"layer": weights, "head": head}
    computes = {name: (count * operations, count * operations * backward) for name, count in numbers.items()}
    if run.recomputes:
        computes["layer"] = computes["layer"][0], computes["layer"][1] + computes["layer"][0]

    def lasts(given: float) -> float:
        return sent(Traffic(1, given, parts, summed=False), link, 1).seconds if given else 0.0  # type: ignore[arg-type]

    return Pass(
        layers, computes["layer"], computes["head"], (lasts(layer), 0.0 if kept else lasts(layer)),
        (lasts(outside), lasts(outside)), lasts(sums[0]), lasts(sums[1]),
    )  # fmt: skip
