"""Saves the state of a trainer between two steps, and resumes a trainer from it.

The engine saves weights, optimizer and schedule. The trainer's state is its position in the data, which follows from
the number of steps; its random state; and its initial reference weights.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerState

GOES_ON = frozenset(
    {"trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "trl.trainer.kto_trainer"}
    | {f"trl.experimental.{name}.{name}_trainer" for name in ("cpo", "orpo")}
)
"""Modules of trainers without further state: in a test, a killed and resumed run of each had the same losses as an
uninterrupted one."""

HOLDS_MORE: Mapping[str, str] = {
    "sync_ref_model": "the reference moves with the policy",
    "ignore_data_skip": "the rows that were read before are not skipped",
    "group_by_length": "the order of rows is drawn anew",
    "train_sampling_strategy": "the rows come in another order",
}
"""Arguments that add state which is not saved, with the reason."""


def why_not(trainer: type[Any], arguments: Mapping[str, Any]) -> str:
    """The reason why a run of this trainer cannot be resumed; empty if it can."""
    if trainer.__module__ not in GOES_ON:
        return f"{trainer.__name__} holds a state of its own, which no checkpoint saves"
    reasons = [f"with {name} {why}" for name, why in HOLDS_MORE.items() if arguments.get(name)]
    return reasons[0] if reasons else ""


@dataclass(frozen=True)
class Place:
    """The state between two steps of a trainer.

    Attributes:
        step, epoch: number of completed ones.
        random: see `drawn_from`.
        reference: the trained weights before the first step, for a trainer with a reference model.
    """

    step: int
    epoch: float
    random: Mapping[str, Any]
    reference: Mapping[str, Any] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {
            "steps": self.step, "epoch": self.epoch, "random": dict(self.random), "reference": dict(self.reference)
        }  # fmt: skip

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Place:
        """The place from a checkpoint's state."""
        return cls(int(state["steps"]), float(state["epoch"]), state["random"], state["reference"])


def random_state() -> dict[str, Any]:
    """The process's random state: of Python, NumPy, torch and its devices."""
    _, numbers, gauss = random.getstate()
    kind, keys, at, has, cached = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": np.asarray(numbers, np.uint32),
        "python_gauss": gauss,
        "numpy": np.asarray(keys, np.uint32),
        "numpy_rest": [kind, int(at), int(has), float(cached)],
        "torch": torch.get_rng_state().numpy().copy(),
    }
    if torch.cuda.is_available():
        states["cuda"] = [state.numpy().copy() for state in torch.cuda.get_rng_state_all()]
    return states


def draw_from(states: Mapping[str, Any]) -> None:
    """Restore the random state."""
    gauss = states["python_gauss"]
    random.setstate((3, tuple(int(number) for number in states["python"]), None if gauss is None else float(gauss)))
    kind, at, has, cached = states["numpy_rest"]
    np.random.set_state((str(kind), np.asarray(states["numpy"], np.uint32), int(at), int(has), float(cached)))
    torch.set_rng_state(torch.from_numpy(np.array(states["torch"], np.uint8)))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.from_numpy(np.array(state, np.uint8)) for state in states["cuda"]])


def trained_weights(model: nn.Module) -> dict[str, Any]:
    """A model's trained weights in float32, which represents bfloat16 and float16 exactly. The arrays are read-only."""
    weights = {
        name: parameter.detach().to("cpu", torch.float32, copy=True).numpy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    for array in weights.values():
        array.flags.writeable = False
    return weights


def put_back(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Copy the weights into a model."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            named[name].copy_(torch.from_numpy(np.array(value)))


def go_on(trainer: Any, place: Place, folder: Path) -> None:
    """Train from a place, as transformers resumes from a checkpoint: it skips the rows that were read, and requests the
    random state at the right moment. The engine has already loaded weights and optimizer."""
    folder.mkdir()
    state: Any = TrainerState(global_step=place.step, epoch=place.epoch, train_batch_size=trainer._train_batch_size)
    state.compute_steps(trainer.args, trainer.args.max_steps)
    state.save_to_json(str(folder / "trainer_state.json"))
    trainer._load_from_checkpoint = lambda *args, **more: None
    trainer._load_rng_state = lambda checkpoint: draw_from(place.random)
    trainer.train(resume_from_checkpoint=str(folder))
