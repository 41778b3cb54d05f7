"""Weights of a base before quantisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetooth_hooks.protocols import Loader, ModelInfo
from torch import Tensor


def originals(info: ModelInfo, loader: Loader, precision: str | None) -> Callable[[str], Tensor]:
    """A function from a module's path to its weight: read from the base's files one by one if they have the model's
    names, else from the whole model, loaded once into host memory.

    Args:
        precision: precision before quantisation; None: that of its files.
    """
    places: dict[str, Any] = {}
    whole: list[Any] = []

    def read(path: str) -> Tensor:
        from finetooth_torchshared.quantised import PRECISIONS
        from safetensors import safe_open

        name = f"{path}.weight"
        if not places and info.stored is None:
            for file in info.files:
                if file.suffix == ".safetensors":
                    with safe_open(file, framework="pt") as opened:
                        places.update(dict.fromkeys(list(opened.keys()), file))
        if name in places:
            with safe_open(places[name], framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
            return (tensor if precision is None else tensor.to(PRECISIONS[precision])).float()
        if not whole:
            whole.append(loader.load(info.reference, framework="torch", precision=precision or "fp32", device="cpu"))
        weight: Tensor = whole[0].get_submodule(path).weight
        return weight.detach().float()

    return read
