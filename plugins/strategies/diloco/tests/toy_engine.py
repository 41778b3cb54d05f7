"""An engine of four weights: least squares in float64, with torch's own AdamW or SGD."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetooth_hooks import Datum, EngineBase, EngineInfo, Forward, LossSpec, LossTotals, Sampling, Stepped
from finetooth_hooks.engine import Counts, StepSettings
from safetensors.torch import load_file, save_file

WIDTH = 4
BEGIN = {"a": np.array([0.3, -0.2]), "b": np.array([[0.1], [0.4]])}
"""The weights that a run begins with, by name."""


def rows(steps: int, batch: int) -> list[list[tuple[Datum, np.ndarray[Any, Any], float]]]:
    """For each step a batch of data, each with the inputs and the target that it stands for."""
    draw = np.random.default_rng(5)
    return [
        [
            (Datum.from_tokens([1, 2], id=f"row:{step}:{at}"), draw.normal(size=WIDTH), float(draw.normal()))
            for at in range(batch)
        ]
        for step in range(steps)
    ]


class LeastSquares(EngineBase):
    """Half the squared error of a linear model, summed over the data and divided by the number of tokens.

    Args:
        inputs: of each datum, by its id.
        rate: learning rate.
    """

    def __init__(self, inputs: Mapping[str, tuple[np.ndarray[Any, Any], float]], optimizer: str, rate: float) -> None:
        self._inputs = inputs
        self._weights = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in BEGIN.items()}
        made = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
        decay = {"weight_decay": 0.01} if optimizer == "adamw" else {}
        self.optimizer = made(self._weights.values(), lr=rate, **decay)
        self._step = 0

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("torch", "cpu", "fp64", WIDTH, WIDTH)

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"weights", "zero_grad", "full_state", "ranks", "generate"})

    @property
    def weights_version(self) -> int:
        return self._step

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach() for name, weight in self._weights.items()}

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, Any]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(weights[name])

    def forward_backward(self, data: Sequence[Datum], loss: LossSpec, *, normalizer: Counts | None = None) -> Forward:
        assert normalizer is not None
        flat = torch.cat([weight.reshape(-1) for weight in self._weights.values()])
        total = flat.sum() * 0
        for datum in data:
            given, target = self._inputs[datum.id]
            total = total + (torch.tensor(given) @ flat - target) ** 2 / 2 / normalizer["tokens"]
        total.backward()
        return Forward(loss=float(total.detach()), totals=LossTotals("toy", {}, {}))

    def step(self, *, metrics: Mapping[str, float] | None = None, settings: StepSettings | None = None) -> Stepped:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._step += 1
        return Stepped(self._step, 0.0, 0.0)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Any:
        return [weight.clone() for weight in self.weights().values()]

    def forward(
        self, data: Sequence[Datum], loss: LossSpec | None = None, *, role: str = "policy",
        returns: Collection[str] = ("logprobs",), normalizer: Counts | None = None, train: bool = True,
    ) -> Forward:  # fmt: skip
        return Forward()

    def logprobs(self, data: Sequence[Datum], *, role: str = "policy") -> list[Any]:
        return []

    def save(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        kept = {f"weight.{name}": weight for name, weight in self.weights().items()}
        for at, state in enumerate(self.optimizer.state.values()):
            kept |= {f"state.{at}.{key}": torch.as_tensor(value) for key, value in state.items() if value is not None}
        save_file({name: value.clone() for name, value in kept.items()}, path / "toy.safetensors")
        (path / "toy.json").write_text(json.dumps(self._step))

    def load(self, path: Path) -> None:
        kept = load_file(path / "toy.safetensors")
        self.set_weights({name: kept[f"weight.{name}"] for name in self._weights})
        for at, weight in enumerate(self._weights.values()):
            found = {key.split(".", 2)[2]: value for key, value in kept.items() if key.startswith(f"state.{at}.")}
            if found:
                self.optimizer.state[weight] = found
        self._step = json.loads((path / "toy.json").read_text())

    def export(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.clone() for name, weight in self.weights().items()}, path / "artifact.safetensors")

    def restore(self, path: Path) -> None:
        self.set_weights(load_file(path / "artifact.safetensors"))

    def set_total_steps(self, total: int | None) -> None:
        del total
