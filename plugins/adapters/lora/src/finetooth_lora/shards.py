"""Merges a base tensor by tensor, with only one tensor in memory for any size of model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from finetooth_hooks.errors import UserError
from finetooth_hooks.protocols import ModelTensors
from finetooth_modelfiles.lora_settings import scale_of, special_setting
from finetooth_peftfiles import artifact
from torch import Tensor

from finetooth_lora.artifact import A, B

MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
"""Endings of names of DoRA's magnitudes."""
OTHERS = ("modules_to_save", "trainable_token_indices", "fan_in_fan_out")
"""Settings of peft for parts other than matrices of linear modules and experts."""


@dataclass(frozen=True)
class Change:
    """An adapter's change of a weight W to W + scale B A; with DoRA its rows get the trained norms.

    Attributes:
        a, b: (rank, inputs) and (outputs, rank).
        lengths: (outputs,), or None.
    """

    a: Tensor
    b: Tensor
    scale: float
    lengths: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return len(self.b), self.a.shape[1]

    def of(self, weight: Tensor) -> Tensor:
        """The merged W in float32, with peft's order of operations, bit for bit.

        Args:
            weight: (outputs, inputs), float32.
        """
        summed = (self.b.float() @ self.a.float()).mul_(self.scale).add_(weight)
        if self.lengths is None:
            return summed
        norms: Tensor = torch.linalg.vector_norm(summed, dim=1)
        return summed.mul_((self.lengths.float() / norms).unsqueeze(1))


@dataclass(frozen=True)
class ExpertsChange:
    """An adapter's change of experts in one weight: each W becomes W + scale B A.

    Attributes:
        a, b: (experts * rank, inputs) and (outputs, rank * experts), in peft's layout.
        experts: number of experts.
        outputs_first: the weight is (experts, outputs, inputs), else (experts, inputs, outputs).
    """

    a: Tensor
    b: Tensor
    scale: float
    experts: int
    outputs_first: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        sizes = (len(self.b), self.a.shape[1])
        return (self.experts, *(sizes if self.outputs_first else sizes[::-1]))

    def of(self, weight: Tensor) -> Tensor:
        """See `Change.of`."""
        a = self.a.float().reshape(self.experts, -1, self.a.shape[1])
        b = self.b.float().reshape(len(self.b), -1, self.experts)
        form = "o r e, e r i -> e o i" if self.outputs_first else "o r e, e r i -> e i o"
        made: Tensor = torch.einsum(form, b, a).mul_(self.scale).add_(weight)
        return made


def fold_tensors(tensors: ModelTensors, adapter: Path) -> ModelTensors | None:
    """A base with an adapter merged; None if it must be merged as a whole: the adapter trains more than matrices of
    linear modules and experts, or adapts a tied weight.

    Raises:
        UserError: the adapter cannot be read, or belongs to another model.
    """
    changes = changes_of(adapter, tensors.model)
    if changes is None:
        return None
    tied = tensors.model.all_tied_weights_keys
    if changes.keys() & {*tied, *tied.values()}:
        return None  # an addition would change both tied weights
    shapes = tensors.model.state_dict()
    for name, change in changes.items():
        if name not in tensors.files or tuple(shapes[name].shape) != change.shape:
            raise UserError(
                f"{adapter} does not fit its base model: {name} is {' x '.join(map(str, change.shape))} there",
                action="merge it into the model it was trained on",
            )

    def read(name: str) -> Any:
        numbers = tensors.read(name)
        change = changes.get(name)
        if change is None:
            return numbers
        merged = change.of(numbers.float())
        if not torch.stack(merged.aminmax()).isfinite().all():  # both are NaN if any number is, so one pass suffices
            raise UserError(f"merging {name} gives numbers that are not finite", action="train again with a lower rate")
        return merged

    return replace(tensors, read=read)


def changes_of(adapter: Path, model: Any) -> dict[str, Change | ExpertsChange] | None:
    """The changes of a LoRA or DoRA in peft's layout by name of the weight; None if it trains other parts.

    Args:
        model: of its base, without memory.

    Raises:
        UserError: the adapter cannot be read.
    """
    saved, tensors = artifact.read(adapter)
    plain = saved.get("peft_type") == "LORA" and not special_setting(saved)
    if not plain or any(saved.get(name) for name in OTHERS) or saved.get("task_type") not in (None, "CAUSAL_LM"):
        return None
    scale = scale_of(saved)
    changes: dict[str, Change | ExpertsChange] = {}
    for path, weight, experts, outputs_first in _experts(saved, model):
        if path + A not in tensors or path + B not in tensors or not experts:
            return None
        changes[weight] = ExpertsChange(tensors.pop(path + A), tensors.pop(path + B), scale, experts, outputs_first)
    for name in [name for name in tensors if name.endswith(A)]:
        path = name.removesuffix(A)
        if tensors[name].dim() != 2:  # of a convolution
            return None
        lengths = next((tensors.pop(path + end) for end in MAGNITUDES if path + end in tensors), None)
        if path + B not in tensors or (lengths is None) == bool(saved.get("use_dora")):
            return None
        changes[f"{path}.weight"] = Change(tensors.pop(name), tensors.pop(path + B), scale, lengths)
    return None if tensors else changes


def _experts(saved: Mapping[str, Any], model: Any) -> list[tuple[str, str, int, bool]]:
    """For the weights of experts that an adapter changes: path of peft's layer, name of the weight, number of experts
    (0: not a weight of experts), and whether an expert's outputs come before its inputs. peft itself determines this on
    a copy of the model.
    """
    if not saved.get("target_parameters"):
        return []
    import copy

    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora.layer import ParamWrapper

    copied = copy.deepcopy(model)
    config = LoraConfig(r=saved["r"], target_modules=[], target_parameters=list(saved["target_parameters"]))
    with torch.device("meta"):
        inject_adapter_in_model(config, copied)
    wrapped = []
    for path, module in copied.named_modules():
        if isinstance(module, ParamWrapper):
            holder = path
            while holder.endswith(".base_layer"):
                holder = holder.removesuffix(".base_layer")
            outputs_first = bool(module._did_swap_in_out_features)
            weight = copied.get_submodule(path).get_param()
            experts = int(module.num_experts) if weight.dim() == 3 else 0
            wrapped.append((path, f"{holder}.{module.parameter_name}", experts, outputs_first))
    return wrapped
