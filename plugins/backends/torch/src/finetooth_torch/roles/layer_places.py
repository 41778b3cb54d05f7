"""Keeps decoder layers of roles' models off the training device: accelerate copies each to the device that computes it,
and the last output back to the training device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from finetooth_hooks.protocols import ModelFacts
from torch import nn

from finetooth_torch.planning.offload import DISK, HOST, SPREAD
from finetooth_torch.roles.folder_on_disk import folder_for

__all__ = ["place_layers", "spread"]


def place_layers(base: nn.Module, facts: ModelFacts, where: str, device: str) -> None:
    """Move a frozen model's layers to `host`, `disk` or other accelerators, and all else to the device.

    The files of `disk` are in TMPDIR, see `finetooth_torch.roles.folder_on_disk`.

    Args:
        base: on the host.
        where: see `TorchOptions.role_layers`.
        device: for training.
    """
    from accelerate import dispatch_model

    layers: Any = base.get_submodule(facts.layer_path)
    places: list[int | str] = ["cpu" if where == HOST else DISK] * len(layers)
    if where == SPREAD:
        places = spread(layers, _free(device))
    names = {f"{facts.layer_path}.{number}": place for number, place in enumerate(places)}
    dispatch_model(
        base, {**dict.fromkeys(_beside(base, facts.layer_path), device), **names}, main_device=device,
        offload_dir=folder_for(base) if where == DISK else None, force_hooks=True,
    )  # fmt: skip


def spread(layers: nn.Module, memory: Mapping[int | str, int]) -> list[int | str]:
    """A device for each layer, in the order of `memory`; `cpu` where the others are full.

    Args:
        memory: free bytes of each device, by number, and of `cpu`.
    """
    from accelerate import infer_auto_device_map

    kinds = sorted({type(layer).__name__ for layer in layers.children()})
    found: Mapping[str, int | str] = infer_auto_device_map(layers, dict(memory), no_split_module_classes=kinds)
    return [found.get("", found.get(name, "cpu")) for name, _ in layers.named_children()]


def _free(device: str) -> dict[int | str, int]:
    """Free bytes of this machine's accelerators, except the training one, and of the host."""
    from accelerate.utils import get_max_memory

    free: dict[int | str, int] = get_max_memory()
    return {**free, torch.device(device).index or 0: 0}


def _beside(module: nn.Module, path: str, at: str = "") -> Iterator[str]:
    """The largest modules outside the one at `path`."""
    for name, child in module.named_children():
        full = f"{at}{name}"
        if f"{path}.".startswith(f"{full}."):
            if full != path:
                yield from _beside(child, path, f"{full}.")
        else:
            yield full
