"""Which linear modules are nothing but their numbers, so that a product with the weight is what they compute."""

from __future__ import annotations

from torch import Tensor, nn

_UNPACKED = (nn.Parameter, Tensor)
"""Types of weights that are numbers as they stand; quantised ones have types of their own."""


def is_plain(module: nn.Module) -> bool:
    """Whether the module is nothing but its weight and bias: no subclass, hook or packed weight."""
    return (
        type(module) is nn.Linear
        and type(module.weight) in _UNPACKED
        and module.weight.is_floating_point()
        and not is_hooked(module)
    )


def sizes_of(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear module (GPT-2's Conv1D, too), (tokens, width) of an embedding; else None."""
    for names in (("in_features", "out_features"), ("num_embeddings", "embedding_dim"), ("nx", "nf")):
        if all(isinstance(getattr(module, name, None), int) for name in names):
            return getattr(module, names[0]), getattr(module, names[1])
    return None


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody wants to know when the module, or one inside it, is called or differentiated."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    for child in module._modules.values():  # noqa: SIM110 - no generator: every linear layer is asked in every pass
        if child is not None and is_hooked(child):
            return True
    return False
