"""The layers of one rank of a pipeline: they read the previous rank's output; the rest of the model is as in one
process.

Each rank runs the model's own code. Missing layers return their input, the rank's first layer reads the previous rank's
output, and its last one's output goes to the next rank. So every rank computes embeddings, positions and masks, from
the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from finetooth_hooks import EngineError, PlanError
from finetooth_hooks.protocols import Stages
from torch import Tensor, nn

from finetooth_torch.decoder.bodies import States, TransformersBody
from finetooth_torch.draws import Draws
from finetooth_torch.embedding_noise import EmbeddingNoise
from finetooth_torch.layout.rectangles import Rectangle

ALLOWED = 1e-6
"""Largest difference of the pipeline's final states from one process's, as a share of their norm."""


def numbers_of(rank: int, ranks: int, layers: int) -> range:
    """Numbers of the layers of a rank."""
    first, last = (at * layers // ranks for at in (rank, rank + 1))
    return range(first, last)


class StagedLayers:
    """Decoder layers, of which each rank has some consecutive ones.

    Attributes:
        received: (N, D) input of the rank's first layer; unused at rank 0.
        sent: (R, W, D) output of its last layer.

    Args:
        layers: of the decoder, in order.
        ranks: that have them.
    """

    def __init__(self, layers: Sequence[nn.Module], ranks: int) -> None:
        self.layers, self._ranks = tuple(layers), ranks
        self.received: Tensor | None = None
        self.sent: Tensor = torch.empty(0)
        self._values = [0] * len(layers)  # length of the tuple that a layer returns; 0: a tensor

    def of(self, rank: int) -> range:
        """Numbers of the layers of a rank."""
        return numbers_of(rank, self._ranks, len(self.layers))

    @contextmanager
    def at(self, rank: int) -> Iterator[None]:
        """Inside the `with` block, the model computes as that rank."""
        own = self.of(rank)
        with ExitStack() as stack:
            for number, layer in enumerate(self.layers):
                if number not in own:
                    vars(layer)["forward"] = self._hand_on(number)
                    stack.callback(vars(layer).pop, "forward")
            first, last = self.layers[own[0]], self.layers[own[-1]]
            if rank:
                stack.callback(first.register_forward_pre_hook(self._receive, with_kwargs=True).remove)
            stack.callback(last.register_forward_hook(self._send).remove)
            yield

    @torch.no_grad()
    def check(self, body: nn.Module) -> None:
        """Compares the stages, one after the other, with a whole forward on trial tokens.

        Raises:
            PlanError: the pipeline does not compute the same as one process.
        """
        training = body.training
        body.eval()
        device = next(body.parameters()).device
        vocabulary = int(body.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        tokens = (torch.arange(12, device=device)[None] * 5) % (vocabulary - 1) + 1
        try:
            with self._watched():
                whole = body(input_ids=tokens, use_cache=False).last_hidden_state
            for rank in range(self._ranks):
                with self.at(rank):
                    last = body(input_ids=tokens, use_cache=False).last_hidden_state
                self.received = self.sent.flatten(0, 1)
            difference = float(
                ((last - whole).double().norm(dim=-1) / whole.double().norm(dim=-1).clamp_min(1e-30)).max()
            )
            problem = "" if difference <= ALLOWED else f"its ranks compute other states ({difference:.1e} apart)"
        except Exception as error:  # of the model's own code
            problem = f"the model failed: {type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
        finally:
            body.train(training)
            self.received = None
        if problem:
            raise PlanError(
                f"scale.strategy: the layers of this model cannot be divided among ranks: {problem}",
                action="set scale.strategy: fsdp",
            )

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Inside the `with` block, the form of the layers' return values is recorded."""

        def watch(number: int) -> Callable[..., None]:
            def keep(_: nn.Module, __: Any, output: Any) -> None:
                self._values[number] = len(output) if isinstance(output, tuple) else 0

            return keep

        with ExitStack() as stack:
            for number, layer in enumerate(self.layers):
                stack.callback(layer.register_forward_hook(watch(number)).remove)
            yield

    def _hand_on(self, number: int) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **more: Any) -> Any:
            del args, more
            count = self._values[number]
            return (hidden_states, *[None] * (count - 1)) if count else hidden_states

        return forward

    def _receive(self, _: nn.Module, args: tuple[Any, ...], more: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        own: Tensor = args[0] if args else more["hidden_states"]
        assert self.received is not None
        given = self.received[: own.shape[0] * own.shape[1]].view_as(own)
        return ((given, *args[1:]), more) if args else (args, {**more, "hidden_states": given})

    def _send(self, _: nn.Module, __: Any, output: Any) -> None:
        self.sent = output[0] if isinstance(output, tuple) else output


class StagedBody:
    """Implements `finetooth_torch.decoder.bodies.Body` at the last rank: states are the received ones.

    Attributes:
        arrived: states of the current micro-batch.
        compute: returns states after this rank's layers, and separately their rows.
        slices: this rank's share of the positions of each row; None: all.

    Args:
        body: the model's own code.
        layers: after their check.
        line: to the ranks with the other layers.
    """

    packed = shares = False
    least_saved = 0.0
    noise: EmbeddingNoise | None = None
    draws: Draws | None = None

    def __init__(self, body: TransformersBody, layers: StagedLayers, line: Stages) -> None:
        self._body, self.layers, self.line = body, layers, line
        self.arrived: States | None = None
        self.compute: Callable[[Rectangle], tuple[Tensor, States]] = self._computed
        self.slices = body.slices
        self._as_rank = ExitStack()
        self._as_rank.enter_context(layers.at(line.rank))  # as long as the model lives

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """Inside the `with` block, the model computes as in one process."""
        self._as_rank.close()
        try:
            yield
        finally:
            self._as_rank.enter_context(self.layers.at(self.line.rank))

    def advance(self, rectangle: Rectangle, received: Tensor | None) -> States:
        """States after this rank's layers, at the last rank the model's.

        Args:
            received: from the previous rank; None at the first.

        Raises:
            EngineError: the examples hold images or sounds.
        """
        if rectangle.media:
            raise EngineError(
                "scale.strategy: the data have images or sounds, and ranks divide the layers",
                action="set scale.strategy: fsdp",
            )
        self.layers.received = received
        return self.compute(rectangle)[1]

    def _computed(self, rectangle: Rectangle) -> tuple[Tensor, States]:
        states = self._body.states(rectangle, everywhere=True)
        if self.line.rank < self.line.world - 1:
            states = replace(states, rows=self.layers.sent.flatten(0, 1))
        return states.rows, states

    def states(self, rectangle: Rectangle, *, everywhere: bool, layers: Collection[int] = ()) -> States:
        """See `Body`.

        Raises:
            PlanError: a loss needs other hidden states than the last.
            EngineError: a call needs the whole model at one rank.
        """
        del rectangle, everywhere
        if layers:
            raise PlanError(
                "loss: it reads hidden states between layers, which are at other ranks (scale.strategy)",
                action="set scale.strategy: fsdp",
            )
        if self.arrived is None:
            raise EngineError(
                "scale.strategy: this rank has some of the model's layers, and cannot compute alone",
                action="set scale.strategy: fsdp",
            )
        return self.arrived
