"""Strategies and launchers: how one engine is spread over ranks, and how ranks are started."""

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
        rank: which one it is, from 0. Rank 0 writes the run folder and speaks to the user.
        world: how many there are.
        local: which one it is on its machine, from 0.
        address, port: where rank 0 waits for the others.
    """

    rank: int
    world: int
    local: int
    address: str
    port: int


@dataclass(frozen=True)
class Traffic:
    """What a rank gives to the others while a run trains; what they say to each other in addition is a few bytes.

    Attributes:
        every: steps between two exchanges.
        sent: bytes of what a rank gives at an exchange.
        peers: how many exchange: ranks, or islands.
        summed: the others get the sum of what all gave; else each gets what every other gave. A reduce-scatter, where
            each gets its part of the sum, sends as much as the second of what it leaves at a rank.
        last: bytes of what a rank gives at the last step of a run; None: `sent`.
        calls: collective calls of an exchange, each of which waits for the link once for every rank that it passes.
        what: is given, in a word or two.
        span: the number of neighbouring ranks, by their numbers, among which those that exchange lie: a machine that
            holds these carries the exchange by itself. None: `peers`, which are neighbours.
        also: what a rank gives to others in the same run.
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
    """What a step puts through a model, as far as what ranks send depends on it.

    Attributes:
        weights: bytes of the whole model with its adapter, in the precision that it computes in.
        outside: of those, what lies in no decoder layer.
        layers: of the decoder.
        passes: micro-batches that a rank takes through the model in a step, about.
        size: bytes of a number that it computes with.
        positions: of a micro-batch, all those that ranks divide, about.
        hidden: numbers of a position's hidden state.
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
        """Numbers that train and lie in no decoder layer, if `parameters` train: all, or those of an adapter, which
        lie in layers."""
        return self.outside // self.size if parameters * self.size >= self.weights else 0


class ShardedModel(Protocol):
    """A model of whose parameters each rank holds a part. Every rank computes with it equally often."""

    def computing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that computes with the model, as one to be called in its place: it gathers what lies in no layer,
        and each layer when that is called. Gradients come back as their sums over the ranks, in parts."""
        ...

    def gathered(self) -> AbstractContextManager[None]:
        """Inside the `with` block, every rank holds the whole model in the precision that it computes in; not for
        gradients."""
        ...


class DividedModel(ShardedModel, Protocol):
    """A sharded model that keeps its parts in its own way, see `Sharding.divided`."""

    def parts(self, names: Collection[str]) -> Mapping[str, Any]:
        """This rank's parts of parameters that train, in fp32, which an optimizer updates in place. With torch they are
        of the class `DTensor`, each in the parameter's shape or all its numbers in one row."""
        ...

    def gradients(self) -> Mapping[str, Any]:
        """By name this rank's parts of what backward passes have left since the last call, summed over the ranks."""
        ...

    def publish(self) -> None:
        """From now on, the model computes with what the parts hold."""
        ...


class Neighbours(Collective, Protocol):
    """The line between ranks that compute the same rows, each some of their positions."""

    def all_gather(self, array: Any) -> list[Any]:
        """Every rank's array, in the order of ranks.

        Args:
            array: of the backend's framework, of one shape and type at every rank.
        """
        ...


class StagePasses(Protocol):
    """What one rank computes of the micro-batches that go through the layers of several, by their numbers from 0."""

    def forward(self, number: int, received: Any) -> Any:
        """States behind this rank's layers.

        Args:
            received: states behind the layers of the rank before; at the first rank nothing that it reads.
        """
        ...

    def loss(self, number: int, states: Any) -> Any:
        """scalar: what a micro-batch adds to the loss; at the last rank alone."""
        ...

    def again(self, number: int) -> AbstractContextManager[None]:
        """What a backward pass goes through in, since it may compute layers again."""
        ...


class Stages(Collective, Protocol):
    """The line between ranks of which each has some of a model's decoder layers: rank 0 the first ones, and the last
    rank the head."""

    def through(self, passes: StagePasses, micro_batches: int, states: Any, *, backward: bool) -> None:
        """Take micro-batches through the layers of all ranks, each of which makes this call.

        Args:
            states: an array with the shape, type and device of what each rank gives to the next.
            backward: and back again.
        """
        ...


@dataclass(frozen=True)
class Sharding:
    """What a strategy divides.

    Attributes:
        weights, gradients, optimizer: among how many ranks each of them is divided; 1: every rank holds all of it.
        shard: divides an adapted model, given its decoder layers in their order and the precision that it computes in
            (`fp32`, `bf16`). With `stages`, these are this rank's layers, and parameters of others have no memory. What
            trains comes as it was read, and is held in fp32 from then on: made so layer by layer, since the ranks of a
            machine would have no room for as many whole models. With torch, its parameters are of the class `DTensor`
            then. None: every rank holds the whole model.
        layers: among how many times as many ranks the weights of each decoder layer are divided.
        positions: among how many ranks the positions of each row are divided. The engine divides them, and gives the
            same outputs at each of these ranks; a rank's gradients are those of its own positions.
        neighbours: gives the line to these ranks once the strategy is open; None: positions are not divided.
        stages: gives the line to the ranks that each have some of the decoder layers; None: every rank has something of
            every layer. With `shard`, ranks that have the same layers divide these.
        stage_count: how many ranks `stages` is between.
        divided: what `shard` gives is a `DividedModel`, which holds what trains in addition to the weights that are
            gathered.
        on_host: a rank's part of the weights that are gathered lies in the memory of the host; if the model is not
            `divided`, its parts of gradients and optimizer state, too.
        stored: `shard` divides a frozen base that is stored in fewer bits, too.
        keeps: leaves a rank its part of a module of such a base, given the module's path and the module, as soon as it
            is read and before `shard`; all ranks ask in the same order. None: a rank reads all of them first.
        whole: of a divided model, gives all numbers of a parameter that does not train, in host memory and for the
            caller alone; all ranks ask. None: the model is made whole for it.
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

    def held(self) -> Mapping[str, tuple[int, str]]:
        """Of all that is divided, by its name: into how many parts, and what a rank holds as the end of a sentence."""
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
        """Meet the other ranks; returns once all are there.

        A strategy that divides a model or an optimizer's state, and can do so inside an island of DiLoCo's, takes a
        keyword argument `islands`, too: groups of neighbouring ranks that train apart, 1 by default.

        Args:
            device: that the rank computes on, as the framework calls it.

        Raises:
            EngineError: they cannot be reached.
        """
        ...

    def wrap(self, model: Any) -> Any:
        """Return the adapted model as the strategy needs it; the model itself if its parameters stay as they are.

        It is called before anything is copied from the parameters.
        """
        ...

    def spread(self, engine: Engine, collective: Collective) -> Engine:
        """The engine that a method drives: it is called with the data of a whole step.

        Args:
            engine: of this rank, with the capability `ranks`.
        """
        ...

    def digest(self, engine: Engine) -> str:
        """Hash of what must be the same at every rank when training begins, such as the trained weights."""
        ...

    def close(self) -> None:
        """Leave the other ranks."""
        ...


class IslandStrategy(Strategy, Protocol):
    """With the capability `islands`."""

    def island(self) -> Collective:
        """The line that this rank's engine gets; called once `open` has returned. It leads to the ranks of its island,
        or, where an island computes the same rows, to one rank of each."""
        ...


class ShardedOptimizer(Protocol):
    """An optimizer of the framework, of whose work each rank does a part. Its parameter groups hold whole parameters,
    and its state dict is that of one process: every rank asks for it at the same time.

    In a step, `share` comes first, then `norm`, `clip` and the optimizer's own `step`, after which every rank has the
    same parameters.
    """

    def share(self) -> None:
        """Bring together what all ranks have accumulated: each keeps its part of the sum, and the parameters have no
        gradients any more."""
        ...

    def norm(self) -> float:
        """Global L2 norm of the sum, the same at every rank. One that is not finite drops the gradients."""
        ...

    def clip(self, limit: float, norm: float) -> None:
        """Scale the sum so that its norm is at most `limit`."""
        ...


class OptimizerStrategy(Strategy, Protocol):
    """With the capability `optimizer`, and `shards`: `sharding` says among how many ranks the state is divided."""

    def shard_optimizer(
        self, parameters: Sequence[tuple[str, Any]], optimizer: Any, factory: Optimizer
    ) -> ShardedOptimizer:
        """Spread the state of an optimizer over the ranks.

        Args:
            parameters: names and what trains, in the order of the optimizer's groups or another.
            optimizer: over them, before its first step.
            factory: what made it.

        Raises:
            PlanError: it cannot work on a part of its parameters.
        """
        ...


class ShardingStrategy(Strategy, Protocol):
    """With the capability `shards`."""

    def sharding(self, world: int) -> Sharding:
        """What it divides among `world` ranks, and how; asked before `open` for a plan, which does not shard."""
        ...


class ForeseenStrategy(Strategy, Protocol):
    """With the capability `traffic`."""

    def traffic(self, parameters: int, world: int) -> Traffic:
        """What a rank will send; nothing is opened. One that has the capability `shards`, too, takes a keyword argument
        `run`, `Foreseen`.

        Args:
            parameters: numbers that train.
            world: ranks.

        Raises:
            PlanError: it cannot say it with its options.
        """
        ...


class Launcher(Protocol):
    """Starts the ranks of a run."""

    def rank(self) -> Rank | None:
        """The place of this process; None if nobody started it as one of several.

        Raises:
            PlanError: what says the place is incomplete.
        """
        ...

    def start(self, world: int, command: Sequence[str]) -> int:
        """Start `world` ranks of a command on this machine and wait for them.

        What a rank but the first says at its end reaches the user with its number. Where one ends with an error, the
        others are ended.

        Args:
            command: of one rank: a program and its arguments.

        Returns:
            The exit code of the run.
        """
        ...


class MachinesLauncher(Launcher, Protocol):
    """With the capability `machines`."""

    def start(self, world: int, command: Sequence[str], *, nodes: int = 1) -> int:
        """See `Launcher.start`.

        Args:
            nodes: machines that the ranks share evenly; divides `world`.

        Raises:
            PlanError: there are not as many machines.
        """
        ...
