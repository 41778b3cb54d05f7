"""What builds an engine: the hardware's facts, what a backend is asked, what it decides, and what it then builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from finetooth_hooks.engine import Engine
from finetooth_hooks.entries import ScalarHead
from finetooth_hooks.kernels import ComputePart, PickKernels
from finetooth_hooks.models import Loader, ModelFacts, ModelInfo, Tokenizer
from finetooth_hooks.plan import Decision, MemoryEstimate, Plan, TrainSettings
from finetooth_hooks.renderers import Processor
from finetooth_hooks.training import Adapter, Optimizer, Schedule


@dataclass(frozen=True)
class HardwareFacts:
    """One device.

    Attributes:
        name: full name of the hardware's entry.
        device: what the framework calls it, `cpu`, `cuda:0`.
        label: what a person calls it, `2 CPU cores (avx512_bf16)`.
        memory: total bytes, not what happens to be free.
        precisions: what it computes natively, best first.
        slow_precisions: what it can compute, but slower than fp32.
        architecture: what kernels are compiled for, `sm_90`, `gfx942`, `avx512`; empty if it is not known.
        peak_flops: dense FLOP/s by precision as its maker states them; empty where they are not known, and are
            measured if asked for.
    """

    name: str
    device: str
    label: str
    memory: int
    precisions: tuple[str, ...]
    slow_precisions: tuple[str, ...] = ()
    peak_flops: Mapping[str, float] = field(default_factory=dict)
    architecture: str = ""


class Hardware(Protocol):
    """A kind of device."""

    def missing(self) -> str:
        """Why it cannot be used here; empty if it can."""
        ...

    def facts(self) -> HardwareFacts: ...


@dataclass(frozen=True)
class PlanRequest:
    """What a backend needs to decide its settings.

    Attributes:
        train: the `train` section; None fields are `auto`.
        longest: positions of the longest datum; `train.max_length` when data are not read yet.
        longest_id: the row of that datum; empty if it is not known.
        mean_length: positions of the average datum; 0 when data are not read yet.
        length_deviation: standard deviation of that.
        lengths: positions of the data at equal shares, shortest first; empty if they are not known.
        segmented: data hold several segments (`Datum.parents`), which must be kept apart.
        needs: engine capabilities that the method and the evaluators rely on.
        head: the scalar head that the method asks for.
        proportional_to: what the loss says of its gradient; see `Loss`. None: nothing, or there is no loss.
        role_parameters: parameters of frozen models held beside the policy.
        trained_parameters: how many parameters train, those of the head included.
        optimizer_bytes: optimizer state per trained parameter.
        optimizer: full name, for messages.
        accumulation: the optimizer can accumulate gradients.
        checkpointing: the optimizer works with gradient checkpointing.
        kernels: picks providers for the operations that the engine will compute; what it picks reaches the engine's
            request. None: nobody does.
    """

    model: ModelInfo
    facts: ModelFacts
    hardware: HardwareFacts
    train: TrainSettings
    trained_parameters: int
    optimizer_bytes: float
    optimizer: str
    accumulation: bool
    checkpointing: bool
    longest: int
    mean_length: float
    longest_id: str = ""
    length_deviation: float = 0.0
    lengths: tuple[int, ...] = ()
    segmented: bool = False
    needs: frozenset[str] = frozenset()
    head: ScalarHead | None = None
    role_parameters: int = 0
    proportional_to: str | None = None
    kernels: PickKernels | None = None


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
class RoleRequest:
    """A frozen model that the engine shall hold for a role.

    Attributes:
        model, facts, loader: of another model than the policy's; None: a copy of the policy.
    """

    model: ModelInfo | None = None
    facts: ModelFacts | None = None
    loader: Loader | None = None


@dataclass(frozen=True)
class EngineRequest:
    """The parts an engine is made of.

    Attributes:
        stop_ids: token ids that end an answer, from the renderer.
        processor: gives what turns images into inputs, built when the first image comes; None: there is none.
        generator_seed: key for the engine's own random streams (dropout, sampling).
        adapter_generator: draws the adapter's new parameters.
        roles: frozen models beside the policy, by role; see the capability `roles`.
        head: a scalar head to build; one that the model brings is gone on with, else it is new.
        head_generator: draws a new head's weights.
        compute: the kernels that were picked.
    """

    plan: Plan
    model: ModelInfo
    facts: ModelFacts
    hardware: HardwareFacts
    loader: Loader
    adapter: Adapter
    adapter_can_disable: bool
    optimizer: Optimizer
    schedule: Schedule
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    processor: Callable[[], Processor] | None = None
    generator_seed: int = 0
    adapter_generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    roles: Mapping[str, RoleRequest] = field(default_factory=dict)
    head: ScalarHead | None = None
    head_generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
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
