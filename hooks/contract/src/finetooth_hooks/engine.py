"""The engine trains one set of parameters on a frozen base, and offers the eight primitives.

A local run, a REST service and a remote wire are callers of the same object. Data go in as `Datum`, results come back
as NumPy arrays and plain numbers, so no caller needs the framework.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from finetooth_hooks.compute.loss_totals import LossTotals
from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.sampling import Generated, Sampling

if TYPE_CHECKING:
    from finetooth_hooks.compute.held import HeldAdapter, Stack
    from finetooth_hooks.continuous import RunningBatch

Counts = Mapping[str, float]
"""Normalizers of a whole step by name (`weights`, `tokens`, `sequences`, `groups`)."""

R = TypeVar("R")


@dataclass(frozen=True)
class Handle:
    """Identifies a forward pass whose backward pass may follow: its data, random state and weights version."""

    id: int
    weights_version: int


@dataclass(frozen=True)
class Forward:
    """Result of `forward` and `forward_backward`.

    Attributes:
        outputs: per datum, arrays by name; `logprobs` (N,) or (N, K), float32, 0 where the mask is false; of a scalar
            head `values` (N,), likewise, and `scores` (), the value at the last position where the mask is true.
        loss: the loss, normalised over the step; None without a loss.
        components: the normalised components, before their weights.
        metrics: as the loss reported them, combined over micro-batches.
        tokens: input positions that are not padding.
        padded: input positions computed, padding included.
        targets: targets that counted.
        micro_batches: number of micro-batches.
        handle: for `backward`; None after `forward_backward` and without the capability `handles`.
        flops: executed floating-point operations, with padding and recomputation; 0 if not counted.
        totals: of the loss before normalisation, to be merged with other calls of the step; None without a loss.
    """

    outputs: tuple[Mapping[str, NDArray[Any]], ...] = ()
    loss: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    padded: int = 0
    targets: int = 0
    micro_batches: int = 1
    handle: Handle | None = None
    flops: float = 0.0
    totals: LossTotals | None = None


@dataclass(frozen=True)
class Backward:
    """Result of `backward`.

    Attributes:
        grad_norm: global L2 norm of all accumulated gradients, unscaled.
        overflow: it is not finite.
        flops: executed floating-point operations, with a repeated forward pass; 0 if not counted.
    """

    grad_norm: float
    overflow: bool
    flops: float = 0.0


@dataclass(frozen=True)
class Stepped:
    """Result of `step`.

    Attributes:
        step: number of optimizer steps done, this one included (skipped ones too).
        learning_rate: the applied one.
        grad_norm: global L2 norm before clipping.
        skipped: nothing was applied (fp16 overflow); the scale was lowered.
    """

    step: int
    learning_rate: float
    grad_norm: float
    skipped: bool = False


@dataclass(frozen=True)
class StepSettings:
    """Settings of one optimizer step instead of the recipe's, for a caller with its own schedule.

    Attributes:
        learning_rate: applied without the schedule's factor; None: the recipe's.
        max_grad_norm: global L2 norm to clip to, 0 is off; None: the recipe's.
        optimizer: options of the optimizer by their names in a recipe (`betas`, `eps`, `weight_decay`), default: the
            recipe's. `weight_decay` applies to decaying parameters: norms and biases keep theirs.
    """

    learning_rate: float | None = None
    max_grad_norm: float | None = None
    optimizer: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineInfo:
    """Facts of a built engine.

    Attributes:
        framework: `torch`, `mlx`, `numpy`.
        device: where it computes.
        precision: `fp32`, `bf16`, `fp16`, `fp64`.
        parameters: all parameters.
        trained: parameters that train.
        max_length: longest sequence, in tokens; 0 if unbounded.
        environment: on which its numbers depend, besides the plan, by name (`torch`: its version, `threads`). If one
            differs, a resumed run is the same only within float tolerance.
    """

    framework: str
    device: str
    precision: str
    parameters: int
    trained: int
    max_length: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """An engine's memory on its device.

    Attributes:
        memory: bytes now.
        peak_memory: bytes at the peak, since the engine was built.
        metrics: more of it, by name (`memory/max_reserved`, bytes).
    """

    memory: int
    peak_memory: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RoleModel:
    """A frozen model of an engine besides the policy, by the name of its role.

    Attributes:
        reference: of the model, as in a recipe; empty: a copy of the initial policy.
        only_if_needed: not held if the policy without its adapter can be the role.
    """

    reference: str = ""
    only_if_needed: bool = False


class Snapshot(Protocol):
    """The training state at one moment, as `Engine.save` writes it. It does not change while the engine continues."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        ...

    def to_host(self) -> Snapshot:
        """The snapshot in host memory, or itself if it is there. Another thread may call it while the engine
        continues."""
        ...

    def save(self, path: Path) -> None:
        """Write files for `Engine.load`; from any thread."""
        ...


STEP_SPAN = "step"
"""The span that the run loop puts around every recorded step."""
OBSERVERS_SPAN = "trackers and hooks"
"""The span around trackers and event hooks of a recorded step."""


class Spans(Protocol):
    """A running recording."""

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Inside the `with` block, what happens is recorded as part of `name`."""
        ...


class Engine(Protocol):
    """The eight primitives, and further methods.

    `finetooth_kit` has the checks of every engine. An engine derives from `finetooth_hooks.EngineBase`, where every
    method of a capability raises an error.
    """

    @property
    def info(self) -> EngineInfo: ...

    @property
    def capabilities(self) -> frozenset[str]:
        """Its optional abilities: words of `finetooth_hooks.capabilities.ENGINE`."""
        ...

    @property
    def weights_version(self) -> int:
        """Optimizer steps done."""
        ...

    def forward(
        self,
        data: Sequence[Datum],
        loss: LossSpec | None = None,
        *,
        role: str = "policy",
        returns: Collection[str] = ("logprobs",),
        normalizer: Counts | None = None,
        train: bool = True,
    ) -> Forward:
        """Evaluate. With the policy role and the capability `handles`, keep the data for `backward` and return a
        handle.

        Args:
            train: False to measure: the policy computes without dropout, like other roles, and returns no handle.
        """
        ...

    def backward(
        self,
        handle: Handle,
        grads: Sequence[NDArray[np.floating[Any]]] | None = None,
        *,
        normalizer: Counts | None = None,
    ) -> Backward:
        """Accumulate gradients of the loss given to `forward`, or from dL/dlogprob per example. Capability `handles`;
        gradients from the caller also need `gradients`.

        Raises:
            EngineError: the handle is unknown, already used, or from before a `step`.
        """
        ...

    def forward_backward(self, data: Sequence[Datum], loss: LossSpec, *, normalizer: Counts | None = None) -> Forward:
        """forward and backward, micro-batch by micro-batch; gradients accumulate until `step` or `zero_grad`.

        Args:
            normalizer: totals of the whole step, when the caller splits it over several calls. Default: counted over
                `data`.

        Raises:
            NotFinite: the loss is not finite; it names the examples.
        """
        ...

    def step(self, *, metrics: Mapping[str, float] | None = None, settings: StepSettings | None = None) -> Stepped:
        """Unscale, clip, optimizer, schedule; gradients are dropped afterwards.

        Args:
            metrics: for a schedule that watches a metric.
            settings: for this step only; needs the capability `step_settings`.

        Raises:
            EngineError: the optimizer has no option of a name in `settings`, or a number is invalid.
            NotFinite: a gradient is not finite (and no loss scale can be lowered); only the gradients were dropped.
        """
        ...

    def zero_grad(self) -> None:
        """Drop accumulated gradients. Capability `zero_grad`."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        """Sample `sampling.n` completions for each prompt, batched, with a KV cache. Capability `generate`.

        Args:
            prompts: token ids; one with images or sounds is a `finetooth_hooks.sampling.ShownPrompt`.

        Raises:
            EngineError: a prompt cannot be completed, or holds content that the model cannot read.
        """
        ...

    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[NDArray[np.float32]]:
        """Score targets without a graph: per example (N,) or (N, K), 0 where the mask is false."""
        ...

    def save(self, path: Path) -> None:
        """Write the training state into the folder `path` (made if missing): weights, optimizer, schedule, scaler,
        random state, accumulated gradients and their count, loss states. safetensors and JSON, no pickle."""
        ...

    def load(self, path: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            UserError: not a state of this model and adapter.
        """
        ...

    def export(self, path: Path) -> None:
        """Write the artifact into the folder `path`, in the layout of peft or transformers, for other tools."""
        ...

    def restore(self, path: Path) -> None:
        """Load the trained weights of an artifact from `export`; optimizer and schedule do not change.

        Raises:
            UserError: the artifact does not fit this model and adapter.
        """
        ...

    def set_total_steps(self, total: int | None) -> None:
        """Tell the schedule how many optimizer steps are planned."""
        ...

    def release(self, handle: Handle) -> None:
        """Drop the data that `forward` kept for a backward; nothing happens if they were dropped already. Capability
        `release`."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this is the first of the ranks that a method runs at; True for an engine that trains alone."""
        ...

    def first(self, call: Callable[[], R]) -> R:
        """The first rank's result of `call`, at all ranks; they call this in the same order. For work that ranks could
        do differently: requests to a server, judging answers.

        Args:
            call: does not call an engine. It returns JSON-able data, NumPy arrays, or dataclasses of these.
        """
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Inside the `with` block, the policy has the weights to evaluate and save, if they differ from those for
        gradients (an optimizer with the capability `averages`); nothing may be trained or saved inside it. `export`
        enters it itself."""
        ...

    def running_batch(self) -> RunningBatch:
        """An empty batch that samples the current weights. Several may be open; their steps are independent. Capability
        `continuous`."""
        ...

    def hold(self, path: Path | Stack | None) -> HeldAdapter | None:
        """An adapter on the same base, read from a folder of `export`; of several with weights, their sum; without a
        path only the base. None if one is more than low-rank matrices, which needs `restore` into a separate engine.
        UserError: it has another base. Capability `adapters`."""
        ...

    def snapshot(self) -> Snapshot:
        """Copy the state in memory, at the price of one copy on the device. Capability `snapshots`.

        Raises:
            EngineError: the state is not whole, after a failed step.
        """
        ...

    def rollback(self, snapshot: Snapshot) -> None:
        """Restore a state; the snapshot can be used again. Capability `snapshots`.

        Raises:
            EngineError: it is from another kind of engine.
        """
        ...

    def interrupt_when(self, asked: Callable[[], bool]) -> None:
        """Call the function before every micro-batch; once it returns True, the primitive raises `Interrupted`, and its
        accumulated gradients are dropped. Capability `interrupt`."""
        ...

    def move_role(self, role: str, mix: float) -> None:
        """Move a frozen copy towards the policy: `mix` times the policy's weights and 1 - `mix` times its own. `save`
        includes copies. Capability `roles`.

        Raises:
            PlanError: the role is not a copy.
        """
        ...

    def module(self) -> Any:
        """The framework's own trained model, for a trainer that computes with it: in torch an `nn.Module` from
        `input_ids` to `logits`. The next `step` applies the gradients that a backward leaves in its parameters; the
        caller must not change weights. Capability `module`."""
        ...

    def weights(self) -> Mapping[str, Any]:
        """The trained weights by name: the optimizer's arrays, valid until weights change and read-only. Capability
        `weights`."""
        ...

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        """Copy weights, with the names and shapes of `weights`, into the engine. Capability `weights`.

        Raises:
            EngineError: the names differ.
        """
        ...

    def usage(self) -> Usage:
        """Memory now and at the peak; cheap, since the run loop calls it after every step. Capability `usage`."""
        ...

    def peak_flops(self) -> float:
        """The device's peak FLOP/s in the engine's precision: known, or measured once (0.2 s at most); 0 if unknown.
        Capability `usage`."""
        ...

    def profile(self, folder: Path) -> AbstractContextManager[Spans]:
        """Inside the `with` block, record. On leaving, write into `folder` (made if missing): `trace.json`, a Chrome
        trace, `memory.json`, a timeline of allocated memory, and `table.md`, in words where the time went. Capability
        `profile`."""
        ...
