"""The torch model of a GGUF file: built from its config, with the dequantised weights, and free of quantisation marks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from finetooth_hooks.errors import UserError
from gguf import dequantize
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from finetooth_gguf.architectures import architecture_of, config_values, parameter_name, restored_rows
from finetooth_gguf.container import Container

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def build_config(container: Container, tokenizer: PreTrainedTokenizerFast | None = None) -> PreTrainedConfig:
    """The transformers config of a file; token ids are the tokenizer's, so that the two never disagree."""
    values = config_values(container)
    architecture = architecture_of(container)
    ids = {
        f"{role}_token_id": None if tokenizer is None else getattr(tokenizer, f"{role}_token_id")
        for role in ("bos", "eos", "pad")
    }
    return AutoConfig.for_model(architecture.model_type, **values, **ids)


def state_dict(container: Container, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All parameters of a file by their transformers names, dequantised in float32 and then rounded to `dtype`.

    Raises:
        UserError: a tensor has no counterpart in the model, or is stored in a way that cannot be read.
    """
    values = config_values(container)
    state = {}
    for name, entry in container.tensors.items():
        target = parameter_name(container, name)
        rows = restored_rows(container, name, container.blocks(entry), values)
        try:
            numbers = dequantize(rows, entry.ggml_type)
        except NotImplementedError:
            raise UserError(
                f"model: {container.path} stores {name} as {entry.ggml_type.name}, which cannot be dequantised",
                action="take another quantisation of the model",
            ) from None
        # a float32 tensor is still a read-only view of the file here
        numbers = np.array(numbers, copy=not numbers.flags.writeable).reshape(entry.shape)
        state[target] = torch.from_numpy(numbers).to(dtype)
    return state


def build_model(container: Container, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model in evaluation mode on the CPU.

    Raises:
        UserError: the file lacks a parameter of the model, or holds one of another shape.
    """
    state = state_dict(container, dtype)
    # the auto class insists on a name; the class itself takes a config and a state dict, and builds without initialising
    model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    for what, names in (
        ("lacks", report["missing_keys"]),
        ("holds, in another shape than the model's,", report["mismatched_keys"]),
        ("holds beyond the model's parameters", report["unexpected_keys"]),
    ):
        if names:
            listed = ", ".join(sorted(str(name) for name in names)[:3])
            raise UserError(
                f"model: {container.path} {what} {listed}{' and more' if len(names) > 3 else ''}", action="convert it again"
            )
    return model
