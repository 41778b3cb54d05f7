"""How many parameters a LoRA adds, from a family's facts alone: the plan needs it before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence

from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import linear_shapes

from finetooth_lora.targets import resolve


def added_parameters(targets: str | Sequence[str], facts: ModelFacts, rank: int, *, dora: bool) -> int:
    """Parameters of the adapter: `rank * (inputs + outputs)` a module, with DoRA one more per output.

    Exact for layers built like Llama's; a linear module of another name counts as hidden to hidden.

    Raises:
        RecipeError: a target matches nothing.
    """
    known = linear_shapes(facts)
    sizes: dict[str, tuple[int, int]] = {}
    for layer in range(facts.layers):
        for target in facts.linear_targets:
            name = target.rsplit(".", 1)[-1]
            inside = "." if "." in target else ".self_attn." if target in facts.attention_targets else ".mlp."
            path = f"{facts.layer_path}.{layer}{inside}{target}"
            sizes[path] = known.get(name, (facts.hidden_size, facts.hidden_size))
    sizes[facts.head.module] = (facts.hidden_size, facts.vocab_size)
    sizes[f"{facts.body}.embed_tokens"] = (facts.vocab_size, facts.hidden_size)
    chosen = resolve(targets, facts, tuple(sizes)).modules
    return sum(rank * sum(sizes[path]) + (sizes[path][1] if dora else 0) for path in chosen)
