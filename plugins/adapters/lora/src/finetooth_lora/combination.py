"""Combines several LoRAs with peft's `add_weighted_adapter`: linear, TIES (Yadav et al., 2023, arXiv:2306.01708), DARE
(Yu et al., 2024, arXiv:2311.03099), or their exact sum.

The combinations only need the adapters' matrices, so peft computes them over modules without weights, and no base is
loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from finetooth_hooks import UserError
from finetooth_modelfiles.lora_settings import special_setting
from finetooth_peftfiles.artifact import PREFIX, read, save
from finetooth_peftfiles.resuming import base_names
from finetooth_toolbox.files.trained_over import changed_files, recorded_base
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import Tensor, nn

A, B = ".lora_A.weight", ".lora_B.weight"
MERGED = "merged"
OTHERS = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters")
"""Parts of an adapter that peft cannot combine, or leaves out."""


def combined(
    folders: Sequence[Path], factors: Sequence[float], method: str, density: float | None, seed: int, output: Path
) -> None:
    """Write the combined adapter.

    Args:
        density: share of numbers that stay, with `ties`, `dare_linear` and `dare_ties`.
        seed: random seed of the numbers that DARE drops.

    Raises:
        UserError: the adapters have different bases, are not all plain LoRAs of linear modules, or have ranks or
            modules that the method cannot combine.
    """
    adapters = [read(folder) for folder in folders]
    _check_bases(folders)
    configs = [_config(config, folder) for (config, _), folder in zip(adapters, folders, strict=True)]
    if method != "cat" and len({config.r for config in configs}) > 1:
        ranks = ", ".join(str(config.r) for config in configs)
        raise UserError(f"--method {method}: the ranks are {ranks}", action="use --method cat, which takes any ranks")
    names = [f"adapter_{number}" for number in range(len(folders))]
    tuner = _over_nothing([tensors for _, tensors in adapters], configs, names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuner.add_weighted_adapter(names, list(factors), MERGED, combination_type=method, density=density)
    written: dict[str, Tensor] = {}
    for path, layer in tuner.model.named_modules():
        if MERGED in getattr(layer, "lora_A", {}):
            written[f"{PREFIX}{path}{A}"] = layer.lora_A[MERGED].weight.detach().contiguous()
            written[f"{PREFIX}{path}{B}"] = layer.lora_B[MERGED].weight.detach().contiguous()
    rank = sum(config.r for config in configs) if method == "cat" else configs[0].r
    modules = sorted({path for _, tensors in adapters for path in _paths(tensors)})
    settings = {"r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": _targets(adapters, modules)}
    save(output, written, {**adapters[0][0], **settings, "rank_pattern": {}, "alpha_pattern": {}})


def _over_nothing(added: Sequence[dict[str, Tensor]], configs: Sequence[LoraConfig], names: Sequence[str]) -> Any:
    """peft's tuner with all adapters over a tree of linear modules without weights.

    Raises:
        UserError: two of them adapt a module of different sizes.
    """
    root = nn.Module()
    sizes: dict[str, tuple[int, int]] = {}
    for tensors in added:
        for path in _paths(tensors):
            size = tensors[path + A].shape[1], tensors[path + B].shape[0]
            if sizes.setdefault(path, size) != size:
                raise UserError(
                    f"{path} has {sizes[path]} inputs and outputs in one adapter and {size} in another",
                    action="name adapters of one base",
                )
    for path, (inputs, outputs) in sizes.items():
        at: Any = root
        *holders, last = path.split(".")
        for holder in holders:
            if holder not in at._modules:
                at.add_module(holder, nn.Module())
            at = at._modules[holder]
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")
        # one number in memory for the whole weight: it is never read, and peft makes its matrices on its device
        linear.weight = nn.Parameter(torch.zeros(()).expand(outputs, inputs), requires_grad=False)
        at.add_module(last, linear)
    tuner: Any = None
    for config, name, tensors in zip(configs, names, added, strict=True):
        config.target_modules = {*_paths(tensors)}  # type: ignore[assignment]  # as peft itself keeps them
        if tuner is None:
            tuner = LoraModel(root, config, adapter_name=name)
        else:
            tuner.peft_config[name] = config
            tuner.inject_adapter(root, name)
        for path in _paths(tensors):
            layer: Any = root.get_submodule(path)
            layer.lora_A[name].weight = nn.Parameter(tensors[path + A].float())
            layer.lora_B[name].weight = nn.Parameter(tensors[path + B].float())
    return tuner


def _config(saved: dict[str, Any], folder: Path) -> LoraConfig:
    """The config of a plain LoRA.

    Raises:
        UserError: the adapter is not a plain LoRA.
    """
    other = next((name for name in OTHERS if saved.get(name)), "") or special_setting(saved)
    if saved.get("peft_type") != "LORA" or other:
        what = other or f"the kind {saved.get('peft_type')}"
        raise UserError(
            f"{folder} cannot be combined: it has {what}", action="merge it into its base instead: ft merge"
        )
    return LoraConfig(
        r=saved["r"], lora_alpha=saved["lora_alpha"], use_rslora=bool(saved.get("use_rslora")), target_modules=["x"],
        init_lora_weights=False,
    )  # fmt: skip


def _check_bases(folders: Sequence[Path]) -> None:
    first, *others = [
        base_names(json.loads((folder / "adapter_config.json").read_text()), folder) for folder in folders
    ]
    contents = recorded_base(folders[0])
    for folder, names in zip(folders[1:], others, strict=True):
        if contents and (recorded := recorded_base(folder)):
            if changes := changed_files(contents, recorded):
                raise UserError(
                    f"{folder} was not trained over the base of {folders[0]}: {changes[0]}",
                    action="name adapters of one base",
                )
        elif first and names and not first & names:
            raise UserError(
                f"{folder} was trained on {sorted(names)[0]}, and {folders[0]} on {sorted(first)[0]}",
                action="name adapters of one base",
            )


def _targets(adapters: Sequence[tuple[dict[str, Any], dict[str, Tensor]]], modules: Sequence[str]) -> Any:
    """peft's target setting: the first adapter's, if all adapt the same modules, else each path."""
    same = all(set(_paths(tensors)) == set(modules) for _, tensors in adapters)
    return adapters[0][0]["target_modules"] if same else list(modules)


def _paths(tensors: dict[str, Tensor]) -> list[str]:
    return sorted(name.removesuffix(A) for name in tensors if name.endswith(A))
