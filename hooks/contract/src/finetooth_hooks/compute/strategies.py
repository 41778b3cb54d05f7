"""Strategies spread one engine over ranks; launchers start ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from finetooth_hooks.compute.collectives import Collective
from finetooth_hooks.compute.updates import Optimizer
from finetooth_hooks.engine import Engine


@dataclass(frozen=True)
class Rank:
    """The place of a process among those that train one run.

    Attributes:
        rank: its number, from 0. Rank 0 writes the run folder and the user's output.
        world: number of ranks.
        local: its number on its machine, from 0.
        address, port: where rank 0 waits for the others.
    """

    rank: int
    world: int
    local: int
    address: str
    port: int


@dataclass(frozen=True)
class Traffic:
    """What a rank sends to the others while a run trains, without a few small messages.

    Attributes:
        every: steps between two exchanges.
        sent: bytes that a rank sends in an exchange.
        peers: how many exchange: ranks, or islands.
        summed: each gets the sum over all; else each gets every other's data. A reduce-scatter, where each gets its
            part of the sum, sends as much as the latter, counted in its result.
        last: bytes that a rank sends at the last step of a run; None: `sent`.
        calls: collective calls of an exchange, each of which waits for the link once per rank.
        what: is sent, in a word or two.
        span: number of consecutive ranks that contain the peers: a machine with all of these needs no network for the
            exchange. None: `peers`, which are consecutive.
        also: further traffic in the same run.
    """

    every: int
    sent: int
    peers: int
    summed: bool = True
    last: int | None = None
    calls: int = 1
    what: str = "gradients"
    span: int | None = None
    also: tuple[Traffic, ...] = ()


@dataclass(frozen=True)
class Foreseen:
    """Sizes of a step's computation on which traffic depends.

    Attributes:
        weights: bytes of the whole model with its adapter, in its precision.
        outside: of those, bytes outside decoder layers.
        layers: of the decoder.
        passes: approximate micro-batches per rank and step.
        size: bytes per number.
        positions: approximate positions of a micro-batch, before ranks divide them.
        hidden: numbers per hidden state.
        keys: numbers of a position's keys and values, in one layer.
        linears: linear modules of a layer.
        recomputes: the backward pass computes layers again.
    """

    weights: int
    outside: int
    layers: int
    passes: int
    size: int = 4
    positions: int = 0
    hidden: int = 0
    keys: int = 0
    linears: int = 0
    recomputes: bool = False

    def trained_outside(self, parameters: int) -> int:
        """Trained numbers outside decoder layers, if `parameters` train: those of the model, or none for an adapter,
        which is inside layers."""
        return self.outside // self.size if parameters * self.size >= self.weights else 0


class ShardedModel(Protocol):
    """A model whose parameters are divided among ranks. Every rank must make equally many passes."""

    def computing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function that computes with the model: it gathers the weights outside layers, and each layer when that
        is called. Gradients are summed over ranks, in parts."""
        ...

    def gathered(self) -> AbstractContextManager[None]:
        """Inside the `with` block, every rank holds the whole model in its precision; not for gradients."""
        ...


class DividedModel(ShardedModel, Protocol):
    """A sharded model that manages its parts itself, see `Sharding.divided`."""

    def parts(self, names: Collection[str]) -> Mapping[str, Any]:
        """This rank's parts of parameters that train, in fp32, which an optimizer updates in place. With torch they are
        `DTensor`s, in the parameter's shape or flattened."""
        ...

    def gradients(self) -> Mapping[str, Any]:
        """This rank's parts of the gradients since the last call, summed over ranks, by name."""
        ...

    def publish(self) -> None:
        """Make the model compute with the current parts."""
        ...


class Neighbours(Collective, Protocol):
    """The line between ranks that divide the positions of the same rows."""

    def all_gather(self, array: Any) -> list[Any]:
        """Every rank's array, in the order of ranks.

        Args:
            array: of the backend's framework, of one shape and type at every rank.
        """
        ...


class StagePasses(Protocol):
    """One rank's part of a pipeline's micro-batches, by their numbers from 0."""

    def forward(self, number: int, received: Any) -> Any:
        """States after this rank's layers.

        Args:
            received: states of the previous rank; unused at the first.
        """
        ...

    def loss(self, number: int, states: Any) -> Any:
        """scalar: a micro-batch's part of the loss; only at the last rank."""
        ...

    def again(self, number: int) -> AbstractContextManager[None]:
        """Context of a backward pass, which may recompute layers."""
        ...


class Stages(Collective, Protocol):
    """The line between the ranks of a pipeline: rank 0 has the first decoder layers, and the last rank the head."""

    def through(self, passes: StagePasses, micro_batches: int, states: Any, *, backward: bool) -> None:
        """Pass micro-batches through the layers of all ranks, each of which makes this call.

        Args:
            states: an array with the shape, type and device of the states between ranks.
            backward: whether to compute gradients.
        """
        ...


@dataclass(frozen=True)
class Sharding:
    """What a strategy divides.

    Attributes:
        weights, gradients, optimizer: number of ranks that divide each; 1: every rank holds all of it.
        shard: divides an adapted model, given its decoder layers in order and its precision (`fp32`, `bf16`). With
            `stages`, these are this rank's layers, and parameters of others have no memory. Trained parameters come in
            the files' precision and are converted to fp32 layer by layer, since the ranks of a machine have no room for
            whole copies. With torch, parameters are then `DTensor`s. None: every rank holds the whole model.
        layers: factor on the number of ranks that divide the weights of each decoder layer.
        positions: number of ranks that divide the positions of each row. The engine divides them, and gives the same
            outputs at each of these ranks; a rank's gradients are those of its own positions.
        neighbours: returns the line to these ranks once the strategy is open; None: positions are not divided.
        stages: returns the line to the ranks that each have some of the decoder layers; None: no pipeline. With
            `shard`, ranks with the same layers divide these.
        stage_count: number of ranks of that line.
        divided: `shard` returns a `DividedModel`, which holds trained parameters besides the gathered weights.
        on_host: a rank's part of the gathered weights is in host memory; if the model is not `divided`, also its parts
            of gradients and optimizer state.
        stored: `shard` also divides a quantised frozen base.
        keeps: leaves a rank its part of a module of such a base, given the module's path and the module, as soon as it
            is read and before `shard`; all ranks call it in the same order. None: a rank first reads all modules.
        whole: returns the whole of a divided model's frozen parameter, in host memory and only for the caller; all
            ranks call it. None: the model is gathered for that.
        sampled_by_layer: sampling gathers a layer when it computes, for each token; else the whole model, once.
    """

    weights: int
    gradients: int
    optimizer: int
    shard: Callable[[Any, Sequence[Any], str], ShardedModel] | None = None
    layers: int = 1
    positions: int = 1
    neighbours: Callable[[], Neighbours] | None = None
    stages: Callable[[], Stages] | None = None
    stage_count: int = 1
    divided: bool = False
    on_host: bool = False
    stored: bool = False
    keeps: Callable[[str, Any], None] | None = None
    whole: Callable[[Any], Any] | None = None
    sampled_by_layer: bool = False

    @property
    def together(self) -> int:
        """How many ranks compute the same rows."""
        return self.positions * self.layers * self.stage_count

    def held(self) -> Mapping[str, tuple[int, str]]:
        """The divided things by name: number of parts, and a rank's part as the end of a sentence."""
        if self.stages is not None:
            stages = self.stage_count
            held = {"layers": (stages, f"1/{stages} of the decoder's layers, and all that lies in none")}
            return held if self.shard is None else {**held, **replace(self, stages=None).held()}
        where = ", in host memory" if self.on_host else ""
        rest = "" if self.divided else where
        parts = {
            "weights": (self.weights * self.layers, f"of the weights{where}"),
            "gradients": (self.gradients, f"of the gradients{rest}"),
            "optimizer": (self.optimizer, f"of the optimizer's state{rest}"),
            "positions": (self.positions, "of the positions of a row, and the keys and values of all"),
        }
        return {name: (ranks, f"1/{ranks} {what}") for name, (ranks, what) in parts.items() if ranks > 1}


class Strategy(Protocol):
    """Spreads an engine over ranks. Every rank builds one and makes the same calls in the same order."""

    def open(self, rank: Rank, device: str) -> Collective:
        """Connect to the other ranks; returns once all are connected.

        A strategy that divides a model or an optimizer's state, and supports DiLoCo's islands, also takes a keyword
        argument `islands`: number of groups of consecutive ranks that train separately, 1 by default.

        Args:
            device: the rank's, by the framework's name.

        Raises:
            EngineError: they cannot be reached.
        """
        ...

    def wrap(self, model: Any) -> Any:
        """Return the adapted model as the strategy needs it, or the model itself.

        It is called before parameters are copied.
        """
        ...

    def spread(self, engine: Engine, collective: Collective) -> Engine:
        """The engine for the method, called with the examples of a whole step.

        Args:
            engine: of this rank, with the capability `ranks`.
        """
        ...

    def digest(self, engine: Engine) -> str:
        """Hash of what must be equal at every rank when training begins, such as the trained weights."""
        ...

    def close(self) -> None:
        """Disconnect from the other ranks."""
        ...


class IslandStrategy(Strategy, Protocol):
    """A strategy with the capability `islands`."""

    def island(self) -> Collective:
        """The line of this rank's engine; called after `open`. It connects the ranks of its island, or, if an island
        computes the same rows, one rank of each."""
        ...


class ShardedOptimizer(Protocol):
    """An optimizer of the framework that divides its work among ranks. Its parameter groups hold whole parameters, and
    its state dict is that of one process: all ranks call it together.

    In a step, `share` comes first, then `norm`, `clip` and the optimizer's own `step`, after which every rank has the
    same parameters.
    """

    def share(self) -> None:
        """Sum the gradients of all ranks: each keeps its part of the sum, and the parameters' gradients are dropped."""
        ...

    def norm(self) -> float:
        """Global L2 norm of the sum, the same at every rank. One that is not finite drops the gradients."""
        ...

    def clip(self, limit: float, norm: float) -> None:
        """Scale the sum so that its norm is at most `limit`."""
        ...


class OptimizerStrategy(Strategy, Protocol):
    """A strategy with the capabilities `optimizer` and `shards`: `sharding` says how many ranks divide the state."""

    def shard_optimizer(
        self, parameters: Sequence[tuple[str, Any]], optimizer: Any, factory: Optimizer
    ) -> ShardedOptimizer:
        """Spread the state of an optimizer over the ranks.

        Args:
            parameters: names and trained parameters, in any order.
            optimizer: over them, before its first step.
            factory: its maker.

        Raises:
            PlanError: it cannot work on a part of its parameters.
        """
        ...


class ShardingStrategy(Strategy, Protocol):
    """A strategy with the capability `shards`."""

    def sharding(self, world: int) -> Sharding:
        """What it divides among `world` ranks, and how; also called before `open` for a plan, which does not shard."""
        ...


class ForeseenStrategy(Strategy, Protocol):
    """A strategy with the capability `traffic`."""

    def traffic(self, parameters: int, world: int) -> Traffic:
        """What a rank will send; opens nothing. A strategy that also has the capability `shards` takes a keyword
        argument `run`, `Foreseen`.

        Args:
            parameters: number of trained parameters.
            world: ranks.

        Raises:
            PlanError: unknown with its options.
        """
        ...


class Launcher(Protocol):
    """Starts the ranks of a run."""

    def rank(self) -> Rank | None:
        """The place of this process; None if it was not started as one of several.

        Raises:
            PlanError: the place is incomplete.
        """
        ...

    def start(self, world: int, command: Sequence[str]) -> int:
        """Start `world` ranks of a command on this machine and wait for them.

        The last output of ranks other than the first reaches the user with their number. If one fails, the others are
        ended.

        Args:
            command: of one rank: a program and its arguments.

        Returns:
            The exit code of the run.
        """
        ...


class MachinesLauncher(Launcher, Protocol):
    """A launcher with the capability `machines`."""

    def start(self, world: int, command: Sequence[str], *, nodes: int = 1) -> int:
        """See `Launcher.start`.

        Args:
            nodes: machines that the ranks share evenly; divides `world`.

        Raises:
            PlanError: there are not as many machines.
        """
        ...
