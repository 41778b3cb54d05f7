"""Counts the parameters of a LoRA from a family's facts, since the plan needs them before weights are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.protocols import ModelFacts
from finetooth_modelfiles.sizes import read_once, shapes
from finetooth_modelfiles.targets import resolve

EVA_ROOM = 1 << 30
"""Bytes of sums in memory at once for `init: eva`; further sums need another pass over the rows."""


def added_parameters(targets: str | Sequence[str], facts: ModelFacts, rank: int, *, dora: bool) -> int:
    """Parameters of the adapter: `rank * (inputs + outputs)` per module, with DoRA one more per output.

    Exact for layers built like Llama's; a linear module of another name counts as hidden to hidden.

    Raises:
        RecipeError: a target matches nothing.
    """
    if not targets:
        return 0
    sizes = shapes(facts, targets)
    chosen = resolve(targets, facts, tuple(sizes)).modules
    return sum(rank * sum(sizes[path]) + (sizes[path][1] if dora else 0) for path in chosen)


def reached_weights(targets: str | Sequence[str], facts: ModelFacts) -> int:
    """Number of weights of the adapted modules."""
    sizes = shapes(facts, targets)
    return sum(sizes[path][0] * sizes[path][1] for path in resolve(targets, facts, tuple(sizes)).modules)


def numbers_for_backward(
    targets: str | Sequence[str], facts: ModelFacts, rank: int, *, dora: bool, dropout: float
) -> float:
    """Count of numbers per token that peft's layers keep until backward in a decoder layer, on average, if they are
    called directly: with dropout, or DoRA.

    A and B each keep their inputs; with dropout A's input is separate for each module, and a mask of the same size is
    kept too. DoRA scales the outputs of the base and of the addition, and keeps both.
    """
    sizes = shapes(facts, targets)
    chosen = resolve(targets, facts, tuple(sizes)).modules
    read = sum(2 * sizes[path][0] for path in chosen) if dropout else read_once(chosen, sizes)
    numbers = read + rank * len(chosen)
    return (numbers + (2 * sum(sizes[path][1] for path in chosen) if dora else 0)) / facts.layers


def summed_bytes(targets: str | Sequence[str], facts: ModelFacts, room: int) -> int:
    """Bytes of X^T X of the inputs of all modules, in fp32, as many as fit `room`; and of the largest one in fp64, with
    its eigenvectors and temporary memory of twice as many numbers."""
    sizes = shapes(facts, targets)
    read = [sizes[path][0] for path in resolve(targets, facts, tuple(sizes)).modules]
    return min(room, sum(4 * inputs**2 for inputs in read)) + 8 * 4 * max(read, default=0) ** 2


@dataclass(frozen=True)
class Experts:
    """Experts of a layer in one weight.

    Attributes:
        count: number of experts; 0 if unknown.
        width: size of the hidden layer of an expert.
    """

    count: int = 0
    width: int = 0

    def added(self, parameters: Sequence[str], facts: ModelFacts, rank: int) -> int:
        """Number of parameters of additions to weights of the experts, by the usual names; gate and up may be one
        matrix."""
        total = 0
        for name in parameters:
            last = name.rpartition(".")[2]
            width = 2 * self.width if "gate_up" in last else self.width
            total += facts.layers * self.count * rank * (facts.hidden_size + width)
        return total

    def read(self, parameters: Sequence[str], facts: ModelFacts) -> float:
        """Numbers per token of the inputs of additions to weights of the active experts, on average per layer."""
        down = {"down" in name.rpartition(".")[2] for name in parameters}
        of_one = sum(self.width if is_down else facts.hidden_size for is_down in down)
        return of_one * sum(layer.experts.active for layer in facts.per_layer if layer.experts) / facts.layers


def experts_of(config: Mapping[str, Any]) -> Experts:
    """The experts in a config with transformers' names."""
    text = config.get("text_config") or config
    count = next((text[name] for name in ("num_experts", "num_local_experts", "n_routed_experts") if text.get(name)), 0)
    width = text.get("moe_intermediate_size") or text.get("intermediate_size") or 0
    return Experts(int(count), int(width)) if isinstance(width, int) else Experts(int(count))
