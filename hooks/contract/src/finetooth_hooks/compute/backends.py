"""Backends: the hardware's facts, the request for a plan, the plan, and the request for an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from finetooth_hooks.compute.adapters import Adapter
from finetooth_hooks.compute.collectives import Collective
from finetooth_hooks.compute.heads import ScalarHead
from finetooth_hooks.compute.kernels import ComputePart, PickKernels
from finetooth_hooks.compute.quantizers import Quantizer, Stored
from finetooth_hooks.compute.strategies import Sharding
from finetooth_hooks.compute.updates import Optimizer, Schedule
from finetooth_hooks.engine import Engine
from finetooth_hooks.models import Loader, ModelFacts, ModelInfo, Tokenizer
from finetooth_hooks.plan import Decision, MemoryEstimate, Plan, TrainSettings
from finetooth_hooks.renderers import Processor


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: the framework's, `cpu`, `cuda:0`.
        label: for people, `2 CPU cores (avx512_bf16)`.
        memory: total bytes, not free ones: `auto` decides by it.
        available: bytes that this process could use when the facts were read: free ones and its own. A run that needs
            more is refused when it starts. None: unknown.
        architecture: for compiled kernels, `sm_90`, `gfx942`, `avx512`; empty if unknown.
        index: the framework's, among those of its kind.
    """

    name: str
    label: str
    memory: int
    architecture: str = ""
    index: int = 0
    available: int | None = None


@dataclass(frozen=True)
class HardwareFacts:
    """Devices of one kind, and their abilities.

    Attributes:
        name: full name of the hardware's entry.
        devices: at least one. An engine computes on the first one; a strategy selects each rank's with `only`.
        precisions: what they compute natively, best first.
        slow_precisions: supported, but slower than fp32.
        peak_flops: the maker's dense FLOP/s by precision; empty if unknown, then measured on request.
        host_memory: total bytes of their machine; 0 if unknown. On a CPU the device's own.
        nodes: number of such machines in the run.
        host_available: of `host_memory`, like `Device.available`; None: unknown.
        others: further devices of this kind in the machine.
        allocator: suitable settings of the framework's allocator; empty: the defaults.
    """

    name: str
    devices: tuple[Device, ...]
    precisions: tuple[str, ...]
    slow_precisions: tuple[str, ...] = ()
    peak_flops: Mapping[str, float] = field(default_factory=dict)
    host_memory: int = 0
    nodes: int = 1
    host_available: int | None = None
    others: tuple[Device, ...] = ()
    allocator: str = ""

    @property
    def device(self) -> str:
        """The framework's name of the first device."""
        return self.devices[0].name

    @property
    def label(self) -> str:
        """The label of the first device."""
        return self.devices[0].label

    @property
    def memory(self) -> int:
        """Total bytes of the first device."""
        return self.devices[0].memory

    @property
    def architecture(self) -> str:
        """The architecture of the first device; empty if unknown."""
        return self.devices[0].architecture

    @property
    def lasting(self) -> HardwareFacts:
        """The same without free memory, which other processes change."""
        devices, others = (
            tuple(replace(device, available=None) for device in kind) for kind in (self.devices, self.others)
        )
        return replace(self, devices=devices, others=others, host_available=None)

    def only(self, place: int) -> HardwareFacts:
        """The same with one device, by its place in `devices`."""
        return replace(self, devices=(self.devices[place],))


class Hardware(Protocol):
    """A kind of device."""

    def missing(self) -> str:
        """Why it cannot be used here; empty if it can."""
        ...

    def facts(self) -> HardwareFacts: ...


@dataclass(frozen=True)
class BasePart:
    """The base model.

    Attributes:
        quantizer: of its linear weights; None: none.
    """

    model: ModelInfo
    facts: ModelFacts
    loader: Loader
    quantizer: Quantizer | None = None

    @property
    def stored(self) -> Stored | None:
        """The format of the linear weights in memory; None: plain numbers."""
        return self.model.stored if self.quantizer is None else self.quantizer.stored

    def load(self, *, framework: str, precision: str, device: str) -> Any:
        """The framework's model with its weights; see `Loader.load`."""
        return self.loader.load(
            self.model.reference, framework=framework, precision=precision, device=device, quantizer=self.quantizer
        )


@dataclass(frozen=True)
class TrainsPart:
    """What trains.

    Attributes:
        parameters: number of them, with the head's.
        can_disable, base_frozen, accepts_quantised: from the adapter's entry; an adapter that does not begin as its
            base cannot be disabled.
        head: a scalar head; the model's own is trained further, else it is new.
        generator: draws the adapter's new parameters.
        head_generator: draws a new head's weights.
    """

    adapter: Adapter
    parameters: int
    can_disable: bool = False
    base_frozen: bool = False
    accepts_quantised: bool = False
    head: ScalarHead | None = None
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    head_generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))


@dataclass(frozen=True)
class UpdatesPart:
    """What applies the gradients.

    Attributes:
        name: full name of the optimizer, for messages.
        state_bytes, accumulation, checkpointing, update_bytes, tensor_bytes: from the optimizer's entry.
    """

    optimizer: Optimizer
    schedule: Schedule
    name: str = ""
    state_bytes: float = 8.0
    accumulation: bool = True
    checkpointing: bool = True
    update_bytes: float = 0.0
    tensor_bytes: float = 0.0


@dataclass(frozen=True)
class TextPart:
    """How tokens, images and sounds are read and written.

    Attributes:
        stop_ids: token ids that end an answer, from the renderer.
        processor: returns the processor of images, sounds and videos, built at the first one; None: there is none.
    """

    tokenizer: Tokenizer
    stop_ids: tuple[int, ...] = ()
    processor: Callable[[], Processor] | None = None


@dataclass(frozen=True)
class PlacePart:
    """Where an engine computes.

    Attributes:
        collective: the other ranks that train the same parameters; None: there are none.
        wrap: a strategy's change of the adapted model, before its parameters are copied; None: none.
        shard_optimizer: a strategy's change of the optimizer (`OptimizerStrategy.shard_optimizer`); None: none.
        seed: key for the engine's own random streams (dropout, sampling).
        sharding: how the ranks divide the model or the positions of rows; None: not at all.
    """

    hardware: HardwareFacts
    collective: Collective | None = None
    seed: int = 0
    wrap: Callable[[Any], Any] | None = None
    shard_optimizer: Callable[..., Any] | None = None
    sharding: Sharding | None = None


@dataclass(frozen=True)
class DataPart:
    """The lengths of examples, in positions.

    Attributes:
        longest: of the longest example; `train.max_length` before data are read.
        mean_length: the average; 0 before data are read.
        longest_id: the row of the longest example; empty if unknown.
        length_deviation: standard deviation of the lengths.
        lengths: their quantiles, shortest first; empty if unknown.
        segmented: examples hold several segments (`Datum.parents`), which must be kept apart.
        beginning: positions of the beginning common to all examples; 0 if unknown.
        of_a_row: examples per row, on average: 2 for a preference pair.
        trained_share: trained targets, as a share of the positions; 1 if unknown.
        bounded_by, unbounded: see `DataReport`.
    """

    longest: int
    mean_length: float = 0.0
    longest_id: str = ""
    length_deviation: float = 0.0
    lengths: tuple[int, ...] = ()
    segmented: bool = False
    of_a_row: float = 1.0
    beginning: int = 0
    trained_share: float = 1.0
    bounded_by: str = "train.max_length"
    unbounded: int = 0


@dataclass(frozen=True)
class RoleRequest:
    """A frozen model for a role.

    Attributes:
        model, facts, loader: of another model; None: a copy of the policy.
    """

    model: ModelInfo | None = None
    facts: ModelFacts | None = None
    loader: Loader | None = None


@dataclass(frozen=True)
class SnapshotsPart:
    """The most snapshots that a run holds at once.

    Attributes:
        device: in the device's memory, including the one being written.
        host: in host memory, likewise.
    """

    device: int = 0
    host: int = 0


@dataclass(frozen=True)
class PlanRequest:
    """What a backend needs to decide its settings. Its parts equal those of the later `EngineRequest`.

    Attributes:
        train: the `train` section; None fields are `auto`.
        needs: engine capabilities that the method and the evaluators rely on.
        roles: frozen models other than the policy, by role; see the capability `roles`.
        opened: models that parts of the run opened, such as a reward model: each has its own engine in the same memory.
        proportional_to: the loss's statement on its gradient; see `Loss`. None: none, or no loss.
        kernels: picks providers for the engine's operations; the engine's request has its picks. None: no picks.
        snapshots: that the run will hold.
        several_calls: the data of a step may come in several calls of `forward_backward`, or `backward`.
    """

    train: TrainSettings
    base: BasePart
    trains: TrainsPart
    updates: UpdatesPart
    place: PlacePart
    data: DataPart
    needs: frozenset[str] = frozenset()
    roles: Mapping[str, RoleRequest] = field(default_factory=dict)
    opened: tuple[ModelInfo, ...] = ()
    proportional_to: str | None = None
    kernels: PickKernels | None = None
    snapshots: SnapshotsPart = SnapshotsPart()
    several_calls: bool = False

    @property
    def role_parameters(self) -> int:
        """Parameters of all frozen models besides the policy."""
        counts = (self.trains.parameters if r.model is None else r.model.parameters for r in self.roles.values())
        return sum(counts) + sum(model.parameters for model in self.opened)


@dataclass(frozen=True)
class StepCost:
    """The estimated cost of steps.

    Attributes:
        flops: from the positions of each step's examples and the trained share to the floating-point operations of all
            steps.
        peak_flops: the device's peak FLOP/s in the planned precision: from its maker, else measured in at most 0.2 s.
    """

    flops: Callable[[Sequence[Sequence[int]], float], float]
    peak_flops: Callable[[], float]


@dataclass(frozen=True)
class BackendPlan:
    """A backend's decisions: settings without `None`, reasons, and memory.

    Attributes:
        cost: of steps; or the reason why it is unknown, as the end of a sentence.
        padding: from the positions of each step's examples to the share of padding in computed positions; None if
            unknown.
    """

    train: TrainSettings
    decisions: tuple[Decision, ...]
    memory: MemoryEstimate
    padding: Callable[[Sequence[Sequence[int]]], float] | None = None
    cost: StepCost | str = "the backend does not say what steps take"


@dataclass(frozen=True)
class EngineRequest:
    """The parts an engine is made of.

    Attributes:
        roles: frozen models other than the policy, by role; see the capability `roles`.
        compute: the picked kernels.
    """

    plan: Plan
    base: BasePart
    trains: TrainsPart
    updates: UpdatesPart
    text: TextPart
    place: PlacePart
    roles: Mapping[str, RoleRequest] = field(default_factory=dict)
    compute: ComputePart = field(default_factory=ComputePart)


class Backend(Protocol):
    """Builds engines."""

    def plan(self, request: PlanRequest) -> BackendPlan:
        """Decide precision, micro-batch and checkpointing; imports the framework only if it must.

        Raises:
            PlanError: a combination cannot work; names both settings.
        """
        ...

    def engine(self, request: EngineRequest) -> Engine:
        """Load the weights and build the engine."""
        ...
