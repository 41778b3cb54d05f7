"""Checks, when an engine is built, that the stream decoder and the head compute the same as the transformers model.

The trial compares the computation, not the weights. It copies one layer of every kind with new random parameters in
float32, and runs the model's own forward and ours over the same states, twice through that layer; the other layers do
nothing. So rounding gives differences of about 1e-6, and 1e-4 means another computation. Random parameters test biases
and low-rank matrices that begin at zero, and the sharp attention of trained weights does not magnify rounding.
The trial compares gradients too: of the states, and of the layer's trained parameters. It costs one layer in float32,
forward and backward, and reads no weight.

If they differ, the trial replaces each picked kernel by torch's own in turn, then calls wrapped modules directly
instead of by the adapter's low-rank matrices. The error names the part without which all agrees, and the model only
without such a part.

The states show what ordinary ones hide. Some are so small that a norm's eps matters, and a second trial has small
attention outputs, for norms after attention. Positions are far apart, so that slow rotations turn. Windows are narrowed
to a few positions, and caps of scores lowered. Rows share a beginning.

The trial does not see angles that depend on the longest sequence of a batch (families name the kinds of scaling that do
not), nor windows and caps under other names than `WINDOWS` and `CAPS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Block, ModelFacts
from finetooth_kernels.decoder import Decoder, FindLowRank, Stream
from finetooth_steps.micro_batches import MicroBatch
from finetooth_toolbox import blame
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from finetooth_torch.compute import STREAM, TORCH, WINDOWED, Compute
from finetooth_torch.decoder.bodies import TransformersBody
from finetooth_torch.decoder.suspects import HEAD, broken_part, wrong_kernel, wrong_low_rank
from finetooth_torch.decoder.trial_layers import (
    Place,
    exchanged,
    hand_on,
    is_plain_tensor,
    narrow,
    narrowed_facts,
    one_of_each_kind,
    redrawn_copy,
)
from finetooth_torch.heads.head import Projection
from finetooth_torch.layout.rectangles import Rectangle
from finetooth_torch.layout.stream import make_stream

ALLOWED = 1e-4
"""Largest difference of a position's state, as a share of its norm."""
ALLOWED_GRADIENT = 5e-3
"""Largest difference of a gradient. Sums that nearly cancel, as those through a softmax, have larger rounding errors; a
wrong formula gives more."""

SEED = 20_251
STEM = [*range(17)]
ROWS = ([*STEM, 20, 21, 22], [*STEM, 23], [24, 25, 26, 27, 28])
"""Token ids of the trial: two rows with a common beginning, long enough to be shared, and a third."""
TOKENS = 29

SPREAD = (-3.0, 0.5)
"""Range of the magnitudes of states, as powers of ten."""
SMALL = 1e-3
"""Factor on the weights before and after attention in the trial with small numbers."""
LARGE = 100.0
"""Factor on the states before the head, so that a cap on logits shows."""
STRIDE = 40
"""Most positions between two tokens."""


@dataclass(frozen=True)
class Disagreement:
    """The worst difference.

    Attributes:
        where: `layer 3`, `the final norm`, `the head`.
        share: the largest difference of a position, as a share of its norm; infinite if it is NaN.
        allowed: how large it may be.
    """

    where: str
    share: float
    allowed: float = ALLOWED

    @property
    def right(self) -> bool:
        """Whether the difference is rounding."""
        return self.share <= self.allowed


def check_decoder(
    body: nn.Module, model: nn.Module, facts: ModelFacts, low_rank: FindLowRank, compute: Compute
) -> None:
    """Compares the stream decoder with the model's own forward on trial tokens.

    Args:
        body: with its adapter.
        model: what switches `body` to evaluation.
        facts: with a block.
        low_rank: what the adapter says of a wrapped module.
        compute: the operations, and the decoder.

    Raises:
        PlanError: the stream decoder computes something else than the model's own forward, or they cannot be compared.
    """
    setting, action = "backend.decoder", "set backend.decoder: transformers, and report the model"

    def compare(compute: Compute, low_rank: FindLowRank = low_rank) -> Disagreement:
        with _evaluating(model):
            return compare_decoder(body, facts, low_rank, compute)

    def refused(problem: str) -> PlanError:
        kernel = wrong_kernel(lambda other: compare(other).right, compute, (*STREAM, WINDOWED), problem)
        if kernel is None:
            with suppress(Exception):  # of the model's own code
                if compare(compute, lambda module: None).right:
                    return wrong_low_rank(low_rank, problem)
        return kernel or PlanError(f"{setting}: {problem}", action=action)

    try:
        worst = compare(compute)
    except Exception as error:  # of the model's own code, too
        problem = f"the stream decoder cannot be compared with the model: {blame.error_line(error)}"
        raise broken_part(error, compute) or refused(problem) from error
    if not worst.right:
        raise refused(
            f"{worst.where} of the stream decoder computes something else than the model's own: "
            f"{worst.share:.1e} apart, and {worst.allowed:.0e} is allowed"
        )


def check_head(base: nn.Module, model: nn.Module, facts: ModelFacts, compute: Compute = TORCH) -> None:
    """Compares the logits of the family's output head with those of the model.

    Args:
        base: the transformers model. One that cannot be called with its body exchanged is not checked.
        model: what switches `base` to evaluation.
        compute: the operations of the model's device.

    Raises:
        PlanError: the model makes other logits of its final states than its family says.
    """

    def compare(compute: Compute) -> Disagreement:
        with _evaluating(model):
            return compare_head(base, facts, compute)

    def wrong(problem: str) -> PlanError | None:
        return wrong_kernel(lambda other: compare(other).right, compute, HEAD, problem)

    try:
        worst = compare(compute)
    except Exception as error:  # not every model's code works with replaced parts
        if kernel := wrong(f"it cannot be compared with the model's head: {blame.error_line(error)}"):
            raise kernel from error
        return
    if not worst.right:
        head = facts.head
        if kernel := wrong(
            f"{worst.where} is {worst.share:.1e} apart from the model's, {worst.allowed:.0e} is allowed"
        ):
            raise kernel
        raise PlanError(
            f"model.family: the model makes other logits than its family's head {head.module!r} with scale "
            f"{head.scale:g} and softcap {head.softcap}: {worst.share:.1e} apart, and {worst.allowed:.0e} is allowed",
            action="choose another model.family, or correct the family's facts",
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and one thread: for so few numbers, waking other threads takes longer than computing."""
    training, threads = model.training, torch.get_num_threads()
    model.eval()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        model.train(training)


@torch.no_grad()
def compare_decoder(body: nn.Module, facts: ModelFacts, low_rank: FindLowRank, compute: Compute) -> Disagreement:
    """The worst difference between the stream decoder and the model's own forward.

    Args:
        body: in evaluation mode; it is not changed.
        facts: with a block.
        low_rank: what the adapter says of a wrapped module.
        compute: the operations, and the decoder.
    """
    assert facts.block is not None
    device = next(body.parameters()).device
    trial = _Trial(body, facts, facts.block, low_rank, compute, torch.Generator(device).manual_seed(SEED), device)
    layers = list(body.get_submodule(facts.layer_path.removeprefix(f"{facts.body}.")).children())
    disagreements = [trial.final_norm(layers)]
    for place in one_of_each_kind(layers, facts.layer_path, body.config):
        disagreements += trial.layer(layers, place)
    return max(disagreements, key=lambda disagreement: disagreement.share / disagreement.allowed)


@torch.no_grad()
def compare_head(base: nn.Module, facts: ModelFacts, compute: Compute = TORCH) -> Disagreement:
    """The worst difference between `Projection` and the model's own logits of its final states.

    Args:
        base: the transformers model, in evaluation mode; it is not changed.
    """
    device = torch.device("cpu")  # on any device: the trial uses none of the model's weights
    generator = torch.Generator(device).manual_seed(SEED)
    original = base.get_submodule(facts.head.module)
    bias = getattr(original, "bias", None) is not None
    empty = nn.Linear(facts.hidden_size, TOKENS, bias=bias, device="meta")  # does not change torch's global generator
    head = redrawn_copy(empty.to_empty(device=device), generator)
    states = (LARGE * _states(TOKENS, facts.hidden_size, generator)).requires_grad_()
    ids = torch.arange(TOKENS, device=device)
    here = next(base.parameters()).device == device  # otherwise it was picked for another device than the trial's
    ours = Projection(lambda: head, facts.head, TOKENS, compute if here else TORCH)
    with torch.enable_grad():
        output = BaseModelOutputWithPast(last_hidden_state=states.unsqueeze(0))
        body = Place(base.get_submodule(facts.body), lambda *_, **__: output)
        model = exchanged(base, {facts.body: body, facts.head.module: head})
        expected = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].float()
        logprobs, _ = ours.scores(states, ids, entropy=False)
        exact = torch.log_softmax(expected, -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        incoming = torch.randn(exact.shape, generator=generator)
        both = [
            torch.autograd.grad(x, states, incoming, retain_graph=True, allow_unused=True, materialize_grads=True)[
                0
            ].view(1, -1)
            for x in (logprobs, exact)
        ]
    shares = _share(ours.logits(states), expected), _share(logprobs.unsqueeze(0), exact.unsqueeze(0))
    gradient = Disagreement("the gradient of the head", _share(*both), ALLOWED_GRADIENT)
    return gradient if not gradient.right else Disagreement("the head", max(shares))


class _Trial:
    """Runs the model's own forward and the decoder over the same states."""

    def __init__(
        self, body: nn.Module, facts: ModelFacts, block: Block, low_rank: FindLowRank, compute: Compute,
        generator: torch.Generator, device: torch.device,
    ) -> None:  # fmt: skip
        self._compute = compute
        self._facts, self._block, self._low_rank, self._generator = facts, block, low_rank, generator
        self._path = facts.layer_path.removeprefix(f"{facts.body}.")
        self._config = copy.copy(body.config)
        narrow(vars(self._config))
        states = _states(TOKENS, facts.hidden_size, generator)
        ends = {
            block.embedding: nn.Embedding(TOKENS, facts.hidden_size, _weight=states),
            block.final_norm: redrawn_copy(body.get_submodule(block.final_norm), generator),
        }
        self._body = exchanged(body, ends)
        self._body.config = self._config
        width = max(map(len, ROWS))
        stride = max(1, min(STRIDE, (facts.max_positions or STRIDE * width) // width))
        self._rectangle = _rectangle(width, stride, device)
        self._stream = _stream(self._rectangle, stride)

    def final_norm(self, layers: Sequence[nn.Module]) -> Disagreement:
        """States without any layer: embedding and final norm."""
        decoder = self._decoder(layers[0], 0)
        ours = decoder.normed(decoder.embedded(self._stream.tokens))
        theirs = self._with([Place(layer, hand_on) for layer in layers])
        return Disagreement("the final norm", self._share(ours, theirs))

    def layer(self, layers: Sequence[nn.Module], place: int) -> list[Disagreement]:
        """States after passing the layer twice, so that a factor on its output shows."""
        layer = redrawn_copy(layers[place], self._generator, self._config)

        def twice(hidden_states: Tensor, *more: Any, **named: Any) -> Any:
            return layer(layer(hidden_states, *more, **named), *more, **named)

        decoder = self._decoder(layer, place)
        places = [Place(module, twice if i == place else hand_on) for i, module in enumerate(layers)]
        body, again = self._with(places), [*decoder.layers, *decoder.layers]
        gradients = [*self._gradients(layer, place, lambda: decoder.hidden(self._stream, layers=again), body)]
        for path in filter(None, (self._block.query, self._block.key, self._block.output)):
            for parameter in filter(is_plain_tensor, layer.get_submodule(path).parameters()):
                parameter.mul_(SMALL)
        ours = decoder.hidden(self._stream, layers=again)
        return [*gradients, Disagreement(f"layer {place}", self._share(ours, body))]

    def _gradients(
        self, layer: nn.Module, place: int, decode: Callable[[], Tensor], body: nn.Module
    ) -> Iterator[Disagreement]:
        """Differences of the states, of the embedding's gradients, and of the gradients of the layer's trained
        parameters."""
        with torch.enable_grad():
            ours, theirs = self._cells(decode()), self._theirs(body)
        yield Disagreement(f"layer {place}", _share(ours.detach(), theirs.detach()))
        if not (ours.requires_grad and theirs.requires_grad):
            yield Disagreement(f"a gradient in layer {place}", 0.0 if ours.requires_grad else float("inf"))
            return
        leaves = {"the states": self._body.get_submodule(self._block.embedding).weight}
        leaves |= {name: p for name, p in layer.named_parameters() if p.requires_grad and is_plain_tensor(p)}
        incoming = torch.randn(theirs.shape, generator=self._generator, device=theirs.device)
        got, exact = (
            torch.autograd.grad(
                states, list(leaves.values()), incoming.to(states.dtype), allow_unused=True, materialize_grads=True
            )
            for states in (ours, theirs)
        )
        for name, x, y in zip(leaves, got, exact, strict=True):
            if x.count_nonzero() or y.count_nonzero():
                share = _share(x.reshape(1, -1), y.reshape(1, -1))
                yield Disagreement(f"the gradient of {name} in layer {place}", share, ALLOWED_GRADIENT)

    def _decoder(self, layer: nn.Module, place: int) -> Decoder:
        body = exchanged(self._body, {self._path: nn.ModuleList([layer])})
        make = self._compute.stream_decoder
        assert make is not None
        facts = narrowed_facts(self._facts, place)
        return make(body, facts, self._low_rank, checkpointing=False, compute=self._compute)

    def _with(self, places: Sequence[nn.Module]) -> nn.Module:
        body: nn.Module = exchanged(self._body, {self._path: nn.ModuleList(places)})
        return body

    def _share(self, ours_nd: Tensor, body: nn.Module) -> float:
        return _share(self._cells(ours_nd), self._theirs(body))

    def _cells(self, ours_nd: Tensor) -> Tensor:
        return ours_nd[self._stream.cells_st[self._rectangle.mask]]

    def _theirs(self, body: nn.Module) -> Tensor:
        rectangle = self._rectangle
        read = TransformersBody(body).hidden(rectangle.tokens, positions=rectangle.positions)
        states: Tensor = read.last_hidden_state[rectangle.mask]
        return states


def _rectangle(width: int, stride: int, device: torch.device) -> Rectangle:
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in ROWS], device=device)
    lengths = torch.tensor([len(row) for row in ROWS], device=device)
    positions = torch.arange(width, device=device).mul(stride).expand(len(ROWS), -1).contiguous()
    batch = MicroBatch(tuple(range(len(ROWS))), tuple(map(len, ROWS)), packed=True)
    mask = torch.arange(width, device=device) < lengths.unsqueeze(-1)
    return Rectangle(batch, tokens, positions, mask, tokens)


def _stream(rectangle: Rectangle, stride: int) -> Stream:
    stream = make_stream(replace(rectangle, positions=None), share=True)
    return replace(stream, positions=stream.positions * stride)


def _states(count: int, width: int, generator: torch.Generator) -> Tensor:
    """(count, width), float32."""
    device = generator.device
    shuffled = torch.randperm(count, generator=generator, device=device)
    magnitudes = torch.logspace(*SPREAD, count, device=device)[shuffled]
    return torch.randn(count, width, generator=generator, device=device) * magnitudes.unsqueeze(-1)


def _share(found_nd: Tensor, expected_nd: Tensor) -> float:
    if found_nd.shape != expected_nd.shape:
        return float("inf")
    found_nd, expected_nd = found_nd.detach().cpu().double(), expected_nd.detach().cpu().double()
    differences = (found_nd - expected_nd).norm(dim=-1) / expected_nd.norm(dim=-1)
    worst = float(np.max(differences.cpu().numpy()))
    return worst if np.isfinite(worst) else float("inf")
