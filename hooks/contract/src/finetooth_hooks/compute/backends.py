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
        name: what the framework calls it, `cpu`, `cuda:0`.
        label: what a person calls it, `2 CPU cores (avx512_bf16)`.
        memory: total bytes, not what happens to be free: what `auto` decides goes by it.
        available: bytes that this process could hold when the facts were read: what was free, and what it held itself.
            A run that will take more is refused when it starts. None: it is not known.
        architecture: what kernels are compiled for, `sm_90`, `gfx942`, `avx512`; empty if it is not known.
        index: among those of its kind, as the framework counts them.
    """

    name: str
    label: str
    memory: int
    architecture: str = ""
    index: int = 0
    available: int | None = None


@dataclass(frozen=True)
class HardwareFacts:
    """Devices of one kind, and what each of them can do.

    Attributes:
        name: full name of the hardware's entry.
        devices: at least one. The first is the one that an engine computes on; a strategy gives each rank its own with
            `only`.
        precisions: what they compute natively, best first.
        slow_precisions: what they can compute, but slower than fp32.
        peak_flops: dense FLOP/s by precision as their maker states them; empty where they are not known, and are
            measured if asked for.
        host_memory: total bytes of the machine that they are in; 0 if it is not known. On a CPU the device's own.
        nodes: machines like this one that take part.
        host_available: of `host_memory`, as `Device.available` says it; None: it is not known.
        others: devices of this kind that are in the machine too, and are none of `devices`.
        allocator: settings of the framework's allocator that suit them, in its own words; empty: as it is.
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
        """What the framework calls the first device."""
        return self.devices[0].name

    @property
    def label(self) -> str:
        """What a person calls the first device."""
        return self.devices[0].label

    @property
    def memory(self) -> int:
        """Total bytes of the first device."""
        return self.devices[0].memory

    @property
    def architecture(self) -> str:
        """What kernels for the first device are compiled for; empty if it is not known."""
        return self.devices[0].architecture

    @property
    def lasting(self) -> HardwareFacts:
        """The same without what is free, which others on the machine take and return between two readings."""
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
        quantizer: what its linear weights are stored with; None: they are loaded as they are.
    """

    model: ModelInfo
    facts: ModelFacts
    loader: Loader
    quantizer: Quantizer | None = None

    @property
    def stored(self) -> Stored | None:
        """How the linear weights are stored in memory; None: as plain numbers."""
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
        parameters: how many, those of the head included.
        can_disable, base_frozen, accepts_quantised: what the adapter's entry says of it; one that does not begin as its
            base cannot be disabled.
        head: a scalar head to build; one that the model brings is continued, else it is new.
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
        state_bytes, accumulation, checkpointing, update_bytes, tensor_bytes: what the optimizer's entry says of it.
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
        processor: gives what turns images, sounds and videos into inputs, built when the first one comes; None: there
            is none.
    """

    tokenizer: Tokenizer
    stop_ids: tuple[int, ...] = ()
    processor: Callable[[], Processor] | None = None


@dataclass(frozen=True)
class PlacePart:
    """Where an engine computes.

    Attributes:
        collective: the other ranks that train the same parameters; None: there are none.
        wrap: what a strategy makes of the adapted model, before anything is copied from its parameters; None: nothing.
        shard_optimizer: what a strategy makes of the optimizer (`OptimizerStrategy.shard_optimizer`); None: nothing.
        seed: key for the engine's own random streams (dropout, sampling).
        sharding: how the ranks divide the model or the positions of rows; None: each computes all of both.
    """

    hardware: HardwareFacts
    collective: Collective | None = None
    seed: int = 0
    wrap: Callable[[Any], Any] | None = None
    shard_optimizer: Callable[..., Any] | None = None
    sharding: Sharding | None = None


@dataclass(frozen=True)
class DataPart:
    """How long the data are, in positions.

    Attributes:
        longest: of the longest datum; `train.max_length` when data are not read yet.
        mean_length: of the average datum; 0 when data are not read yet.
        longest_id: the row of the longest datum; empty if it is not known.
        length_deviation: standard deviation of the lengths.
        lengths: of the data at equal shares, shortest first; empty if they are not known.
        segmented: data hold several segments (`Datum.parents`), which must be kept apart.
        beginning: positions that all data have in common at their start; 0 if that is not known.
        of_a_row: data that a row gives, on average: two of a preference pair.
        trained_share: targets that count, as a share of the positions; 1 if it is not known.
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


@dataclass(frozen=True)
class RoleRequest:
    """A frozen model that the engine shall hold for a role.

    Attributes:
        model, facts, loader: of another model than the policy's; None: a copy of the policy.
    """

    model: ModelInfo | None = None
    facts: ModelFacts | None = None
    loader: Loader | None = None


@dataclass(frozen=True)
class SnapshotsPart:
    """Copies of all that trains which a run holds at once, at most, to save them or to go back to them.

    Attributes:
        device: in the device's memory, the one that is being written among them.
        host: in host memory, likewise.
    """

    device: int = 0
    host: int = 0


@dataclass(frozen=True)
class PlanRequest:
    """What a backend needs to decide its settings. The parts are those of the `EngineRequest` that follows.

    Attributes:
        train: the `train` section; None fields are `auto`.
        needs: engine capabilities that the method and the evaluators rely on.
        roles: frozen models other than the policy, by role; see the capability `roles`.
        opened: models that parts of the run opened for themselves, such as a reward model: each has an engine of its
            own in the same memory.
        proportional_to: what the loss says of its gradient; see `Loss`. None: nothing, or no loss.
        kernels: picks providers for the operations that the engine will compute; what it picks reaches the engine's
            request. None: nobody does.
        snapshots: how many the run will hold.
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

    @property
    def role_parameters(self) -> int:
        """Parameters of all frozen models that are held in addition to the policy."""
        counts = (self.trains.parameters if r.model is None else r.model.parameters for r in self.roles.values())
        return sum(counts) + sum(model.parameters for model in self.opened)


@dataclass(frozen=True)
class StepCost:
    """What steps take, reckoned before any is done.

    Attributes:
        flops: for steps, each the positions of its data, and the share of positions that train: the floating-point
            operations of all of them.
        peak_flops: FLOP/s that the device does at most in the planned precision: as its maker states them, else
            measured, in 0.2 s at most.
    """

    flops: Callable[[Sequence[Sequence[int]], float], float]
    peak_flops: Callable[[], float]


@dataclass(frozen=True)
class BackendPlan:
    """What a backend decided: settings without `None`, reasons, and the memory it will take.

    Attributes:
        cost: what steps take; where the backend cannot say, the reason why, as the end of a sentence.
        padding: for steps, each the positions of its data, the share of computed positions that will be padding; None
            if the backend does not know.
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
        compute: the kernels that were picked.
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
