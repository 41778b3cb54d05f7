"""Which linear modules are nothing but their numbers, so that a product with the weight is what they compute."""

from __future__ import annotations

from finetooth_modelfiles.classifiers import HEAD
from torch import Tensor, nn

ROUTERS = ("gate", "router")
"""Names of the linear modules that choose experts."""

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
    """(inputs, outputs) of a linear module (GPT-2's Conv1D, too), (tokens, width) of an embedding, (numbers in a
    window, outputs) of a convolution; None for one by channel and anything else."""
    for names in (("in_features", "out_features"), ("num_embeddings", "embedding_dim"), ("nx", "nf")):
        if all(isinstance(getattr(module, name, None), int) for name in names):
            return getattr(module, names[0]), getattr(module, names[1])
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1:
        return module.weight[0].numel(), module.out_channels
    return None


def is_hooked(module: nn.Module) -> bool:
    """Whether the module, or one inside it, has hooks for calls or gradients."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    for child in module._modules.values():  # noqa: SIM110 - no generator: every linear layer is asked in every pass
        if child is not None and is_hooked(child):
            return True
    return False


def is_only_read(model: nn.Module, path: str) -> bool:
    """Whether the model's own code reads the weight of this linear module: a Mamba layer of transformers hands it to a
    kernel, Hunyuan's router asks for its type, Gemma 3n clamps its coefficients, Llama 4's router gives two values.
    Such a weight stays as it is."""
    name = path.rpartition(".")[2]
    if name in ROUTERS and type(model.get_submodule(path)).forward is not nn.Linear.forward:
        return True
    return name in ("wg", "prediction_coefs", "correction_coefs") or goes_to_kernel(model, path)


def goes_to_kernel(model: nn.Module, path: str) -> bool:
    """Whether a layer of transformers hands the weight at this path to a kernel, and never calls the module: Mamba
    does so, and with its convolution linear attention, too."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    names = ("out_proj", "dt_proj") if hasattr(owner, "D") else ()
    return hasattr(owner, "A_log") and (name in names or name.endswith("conv1d"))


def called_linear(model: nn.Module, path: str) -> nn.Linear | None:
    """The linear module at a path; None for any other module, for the head, and where `is_only_read`."""
    module, head = model.get_submodule(path), getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(module, nn.Linear) or module is head or path.rpartition(".")[2] == HEAD:
        return None
    return None if is_only_read(model, path) else module
