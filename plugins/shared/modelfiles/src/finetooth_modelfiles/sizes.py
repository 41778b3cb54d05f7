"""Shapes of the modules that an adapter can reach, from a family's facts alone: the plan needs them before any weight
is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from finetooth_hooks.protocols import BasePart, ModelFacts, Quantizer, RoleRequest
from finetooth_toolbox.llama_shape import linear_shapes, linears

from finetooth_modelfiles.targets import matching


def shapes(facts: ModelFacts, targets: str | Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) by path of the linear modules of the decoder layers, the head and the embedding.

    Those of the model itself, where its layers are not built like Llama's or a target is none of theirs. Where no
    loader says which those are, a linear module of another name counts as hidden to hidden.
    """
    known = linear_shapes(facts)
    sizes = {
        f"{facts.layer_path}.{number}.{path}": shape
        for number, layer in enumerate(facts.per_layer)
        for path, shape in linears(layer).items()
    }
    for layer in range(0 if sizes else facts.layers):
        for target in facts.linear_targets:
            name = target.rsplit(".", 1)[-1]
            inside = "." if "." in target else ".self_attn." if target in facts.attention_targets else ".mlp."
            path = f"{facts.layer_path}.{layer}{inside}{target}"
            sizes[path] = known.get(name, (facts.hidden_size, facts.hidden_size))
    sizes[facts.head.module] = (facts.hidden_size, facts.vocab_size)
    sizes[f"{facts.body}.embed_tokens"] = (facts.vocab_size, facts.hidden_size)
    names = () if isinstance(targets, str) else targets
    usual = bool(facts.per_layer) or all(target.rsplit(".", 1)[-1] in known for target in facts.linear_targets)
    if facts.modules is None or (usual and all(matching(name, sizes) for name in names)):
        return sizes
    return dict(facts.modules())


def read_once(modules: Iterable[str], sizes: Mapping[str, tuple[int, int]]) -> int:
    """Numbers for each token that modules read, where those of a block that read as many read the same.

    Args:
        modules: their paths.
        sizes: see `shapes`.
    """
    return sum(inputs for _, inputs in {(path.rpartition(".")[0], sizes[path][0]) for path in modules})


def role_quantizer(base: BasePart, role: RoleRequest) -> Quantizer | None:
    """What stores another model that is held for a role: what stores the base, unless the model is stored already or
    the quantizer wants rows of the policy's own."""
    quantizer = base.quantizer
    if quantizer is None or role.model is None or role.model.stored is not None:
        return None
    return None if "calibrate" in quantizer.capabilities else quantizer
