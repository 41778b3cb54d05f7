"""How many parameters a LoRA adds, from a family's facts alone: the plan needs it before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.peft.sizes import shapes
from finetooth_toolbox.peft.targets import resolve


def added_parameters(targets: str | Sequence[str], facts: ModelFacts, rank: int, *, dora: bool) -> int:
    """Parameters of the adapter: `rank * (inputs + outputs)` a module, with DoRA one more per output.

    Exact for layers built like Llama's; a linear module of another name counts as hidden to hidden.

    Raises:
        RecipeError: a target matches nothing.
    """
    if not targets:
        return 0
    sizes = shapes(facts)
    chosen = resolve(targets, facts, tuple(sizes)).modules
    return sum(rank * sum(sizes[path]) + (sizes[path][1] if dora else 0) for path in chosen)


def reached_weights(targets: str | Sequence[str], facts: ModelFacts) -> int:
    """Weights of the modules that carry the adapter."""
    sizes = shapes(facts)
    return sum(sizes[path][0] * sizes[path][1] for path in resolve(targets, facts, tuple(sizes)).modules)


@dataclass(frozen=True)
class Experts:
    """Experts of a layer that are held as one weight.

    Attributes:
        count: how many; 0 where the config does not say.
        width: of what lies between the two halves of an expert.
    """

    count: int = 0
    width: int = 0

    def added(self, parameters: Sequence[str], facts: ModelFacts, rank: int) -> int:
        """Parameters of additions to weights of the experts, by their usual names: gate and up may be one matrix."""
        found = 0
        for name in parameters:
            last = name.rpartition(".")[2]
            width = 2 * self.width if "gate_up" in last else self.width
            found += facts.layers * self.count * rank * (facts.hidden_size + width)
        return found


def experts_of(config: Mapping[str, Any]) -> Experts:
    """What a config in transformers' words says of a model's experts."""
    text = config.get("text_config") or config
    count = next((text[name] for name in ("num_experts", "num_local_experts", "n_routed_experts") if text.get(name)), 0)
    width = text.get("moe_intermediate_size") or text.get("intermediate_size") or 0
    return Experts(int(count), int(width)) if isinstance(width, int) else Experts(int(count))
