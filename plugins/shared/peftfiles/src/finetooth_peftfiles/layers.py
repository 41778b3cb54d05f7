"""Inserts peft's layers into a model without changing its module paths."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.protocols import ModelFacts
from finetooth_modelfiles.targets import SETTING, Targets, resolve
from finetooth_torchshared.plain_modules import goes_to_kernel
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers.pytorch_utils import Conv1D

from finetooth_peftfiles.compilers import compilers_restored

NAME = "default"
"""peft's own name for the only adapter of a model."""


def chosen(targets: Any, model: Any, facts: ModelFacts, adaptable: Callable[[Any], bool]) -> Targets:
    """The modules that carry the adapter.

    Raises:
        RecipeError: a target matches nothing, or a module that the model never calls.
    """
    paths = tuple(path for path, module in model.named_modules() if adaptable(module))
    others = tuple(path for path, module in model.named_modules() if not adaptable(module))
    found = resolve(targets, facts, paths, others)
    if unused := next((path for path in found.modules if goes_to_kernel(model, path)), None):
        raise RecipeError(
            SETTING,
            f"a kernel reads the weight of {unused}, and the model never calls the module, so an adapter on it would "
            "have no effect",
            action=other_targets(facts),
        )
    return found


def is_linear(module: Any) -> bool:
    """Linear modules (quantised ones too) and GPT-2's Conv1D."""
    return hasattr(module, "in_features") or isinstance(module, Conv1D)


def inject(config: PeftConfig, model: Any, targets: Targets, facts: ModelFacts) -> Any:
    """Put peft's layers in place; every parameter is frozen afterwards. torch's global random state is not touched.

    Raises:
        RecipeError: peft refuses the modules, or takes others.
    """
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(config.peft_type)]
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings(), compilers_restored():
            # peft warns that a shared head is hard to merge; `ft merge` gives it a weight of its own
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")
            warnings.filterwarnings("ignore", message="Unsupported layer type")  # custom modules are registered
            # without a compiler of CUDA peft computes in plain torch
            warnings.filterwarnings("ignore", message="Failed to load the CUDA extension")
            warnings.filterwarnings("ignore", message="Setting boft_n_butterfly_factor to 1")
            model = tuner(model, config, adapter_name=NAME).model
    except (ValueError, TypeError, AttributeError) as error:  # the last where it takes a name for that of experts
        problem = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(SETTING, f"peft refuses these modules: {problem}", action=other_targets(facts)) from error
    missed = [path for path in targets.modules if not isinstance(model.get_submodule(path), BaseTunerLayer)]
    if missed:  # where names of experts, once modules of their own, are also those of layers without experts
        raise RecipeError(
            SETTING,
            f"peft takes {missed[0].rpartition('.')[2]} for the experts, which this model holds as one weight, and "
            f"leaves {missed[0]} alone",
            action=other_targets(facts),
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """Inside the `with` block, the model computes as its base."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def other_targets(facts: ModelFacts) -> str:
    """Modules that every model has for adapters."""
    return f"set adapter.targets: attention, or name modules such as {', '.join(facts.attention_targets[:4])}"
