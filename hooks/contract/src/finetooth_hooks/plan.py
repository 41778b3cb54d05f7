"""The plan: the recipe after every `auto` has been decided, with the reason for each decision and the memory
estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Pick = str | Mapping[str, Any]
"""A recipe's pick of an entry: its name, or a mapping with `name` and the entry's options."""


@dataclass(frozen=True)
class Decision:
    """One decided setting.

    Attributes:
        setting: dotted path, `train.precision`.
        value: the decided value, JSON-able.
        reason: one clause with the reason, or that the recipe sets it.
    """

    setting: str
    value: Any
    reason: str


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory in bytes, in two pools, and bytes on a disk that replace memory.

    Attributes:
        parts: of the device, by part (`weights`, `gradients`, `optimizer`, `activations`, `logits`, `overhead`). On a
            CPU the device's memory is the host's, and `host` is empty.
        host: of the host, by part, if the device has separate memory.
        device_has, host_has: total bytes of each pool, filled in by the core; 0: unknown.
        disk: of the disk with temporary files, by part: data that a backend keeps there during training.
    """

    parts: Mapping[str, int]
    host: Mapping[str, int] = field(default_factory=dict)
    device_has: int = 0
    host_has: int = 0
    disk: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Sum of the device's parts, in bytes."""
        return sum(self.parts.values())

    @property
    def host_total(self) -> int:
        """Sum of the host's parts, in bytes; 0 if the device's memory is the host's."""
        return sum(self.host.values())

    @property
    def disk_total(self) -> int:
        """Sum of the parts on a disk, in bytes."""
        return sum(self.disk.values())


@dataclass(frozen=True)
class TrainSettings:
    """The `train` section. In a request `None` means `auto`; a plan has no `None` for it.

    Attributes:
        epochs: passes over the training data; 0 is as many as `max_steps` needs.
        max_steps: optimizer steps, which may end the run before `epochs`; None: no bound.
        batch_size: data in one optimizer step, over all ranks.
        max_length: longest sequence in tokens.
        excess_length: treatment of a longer one, counted in reports: `drop`, `truncate`, `truncate_answers`,
            `truncate_turns`, `split` into several; or `raise`.
        seed: of everything random.
        shuffle: new order each epoch.
        precision: `fp32`, `bf16`, `fp16` or `fp8`.
        micro_batch_tokens: token budget of one micro-batch, padding included.
        gradient_checkpointing: recompute activations in backward.
        max_grad_norm: global L2 norm to clip to; 0 is off.
        curriculum: `shortest_first` or `longest_first`: rows come in the order of their length in the first epoch.
        embedding_noise: NEFTune's alpha; 0 is none.
    """

    epochs: float
    max_steps: int | None
    batch_size: int
    max_length: int
    excess_length: str
    seed: int
    shuffle: bool
    precision: str | None
    micro_batch_tokens: int | None
    gradient_checkpointing: bool | None
    max_grad_norm: float
    curriculum: str | None = None
    embedding_noise: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A run with all settings decided.

    Attributes:
        recipe: the recipe as the user gave it, overrides applied; JSON-able.
        picks: the entry picked for each single-choice section, by kind: full name `DIST:NAME`.
        options: the options of each pick by kind, defaults filled in; JSON-able.
        train: the `train` section, decided.
        decisions: every decision with its reason, in order.
        memory: estimated peak.
        total_steps: optimizer steps, None if unknown.
        hash: SHA-256 over recipe, picks, options, decisions and plugin versions.
    """

    recipe: Mapping[str, Any]
    picks: Mapping[str, str]
    options: Mapping[str, Mapping[str, Any]]
    train: TrainSettings
    decisions: tuple[Decision, ...]
    memory: MemoryEstimate
    total_steps: int | None = None
    hash: str = ""
    notes: tuple[str, ...] = field(default=())
