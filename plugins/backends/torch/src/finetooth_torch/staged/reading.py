"""Loads a model tensor by tensor for ranks that hold a part of it: either only the rank's layers, or all tensors, but
only one at a time in memory.

Layers of other ranks stay on the device `meta`. Code that needs the whole model before that (attention compared with
the model's own, an adapter initialised from the weights, the trial of shared rows) gets made-up numbers in them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from finetooth_hooks.protocols import BasePart, ModelTensors, Stages
from finetooth_torchshared.assembled import CannotAssemble, assembled, settling
from finetooth_torchshared.quantised import QuantisedLinear
from torch import Tensor, nn

from finetooth_torch.offload.mapped_memory import in_one_file
from finetooth_torch.precision import DTYPES
from finetooth_torch.staged.body import numbers_of

SIZE = 0.02
"""Standard deviation of made-up numbers that the model's own code does not initialise."""


def read_own_layers(base: BasePart, precision: str, device: str, stages: Stages) -> nn.Module | None:
    """The model with this rank's layers and everything outside layers; None if its loader must load it whole, or layers
    share weights."""
    tensors = base.loader.tensors(base.model.reference, framework="torch", precision=precision)
    if tensors is None:
        return None
    model, path = tensors.model, base.facts.layer_path
    layers = [f"{path}.{name}" for name, _ in model.get_submodule(path).named_children()]
    if any(name.startswith(f"{path}.") for name in model.all_tied_weights_keys):
        return None
    own = numbers_of(stages.rank, stages.world, len(layers))
    absent = [layer for number, layer in enumerate(layers) if number not in own]
    return _filled(tensors, tensors.read, precision, device, absent)


def read_into_files(base: BasePart, precision: str) -> nn.Module | None:
    """The model in another precision than its files', in mapped files in TMPDIR. The process's memory holds only what
    TMPDIR has no room for. None if its loader must load it whole."""
    tensors = base.loader.tensors(base.model.reference, framework="torch", precision=precision)
    if tensors is None:
        return None

    return _filled(tensors, lambda name: in_file(tensors.read(name)), precision, "cpu")


def keeping_parts(keeps: Callable[[str, nn.Module], None]) -> AbstractContextManager[None]:
    """While entered, of a base in fewer bits that is read module by module, a rank keeps its part of what is stored,
    and in mapped files what stays plain numbers.

    Args:
        keeps: see `finetooth_hooks.protocols.Sharding`.
    """

    def settle(path: str, module: nn.Module) -> None:
        if isinstance(module, QuantisedLinear):
            keeps(path, module)
            return
        for name, of in module._parameters.items():
            if of is not None and not of.is_meta:
                module._parameters[name] = nn.Parameter(in_file(of.detach()), requires_grad=of.requires_grad)

    return settling(settle)


def in_file(tensor: Tensor) -> Tensor:
    """The same numbers in a mapped file in TMPDIR; unchanged if that is full."""
    try:
        return in_one_file([tensor], Path(tempfile.gettempdir()))[0]
    except OSError:
        return tensor


def _filled(
    tensors: ModelTensors, read: Callable[[str], Tensor], precision: str, device: str, without: Sequence[str] = ()
) -> nn.Module | None:
    model = tensors.model
    named = (*model.named_parameters(), *model.named_buffers())
    in_fp32 = {name for name, tensor in named if tensor.dtype == torch.float32}
    try:
        return assembled(
            model, tensors.files, read, dtype=DTYPES[precision], device=device, in_fp32=in_fp32, without=without
        )
    except CannotAssemble:
        return None


@contextmanager
def standing_in(base: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the `with` block, parameters without memory have numbers like the model's own initialisation. Equal layers
    share them, in the memory of one layer.

    Args:
        base: a model of transformers.
        layers: of it.
    """
    models: list[Any] = [of for of in base.modules() if hasattr(of, "_init_weights") and layers[0] in set(of.modules())]
    device = next(parameter.device for parameter in base.parameters() if not parameter.is_meta)
    numbers: dict[tuple[str, torch.Size, torch.dtype], Tensor] = {}
    absent = [
        (f"{path}.{name}", module, name, parameter)
        for layer in layers
        for path, module in layer.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.is_meta
    ]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for path, module, name, parameter in absent:
            key = (path, parameter.shape, parameter.dtype)
            if key not in numbers:
                whole = torch.empty_like(parameter, device="cpu").normal_(std=SIZE)
                module._parameters[name] = nn.Parameter(whole)
                models[-1]._init_weights(module)  # the innermost model
                numbers[key] = whole.to(device)
            module._parameters[name] = nn.Parameter(numbers[key], requires_grad=parameter.requires_grad)
    try:
        yield
    finally:
        for _, module, name, parameter in absent:
            parameter.requires_grad_(module._parameters[name].requires_grad)
            module._parameters[name] = parameter
