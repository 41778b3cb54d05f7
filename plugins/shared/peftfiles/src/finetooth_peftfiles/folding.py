"""An adapter folded into its base, by peft's own merge."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import UserError
from finetooth_hooks.protocols import Quantizer
from finetooth_modelfiles.classifiers import classifier_kind
from finetooth_toolbox.saved_heads import kind_of
from finetooth_torchshared.classifiers import as_classifier, as_language_model

from finetooth_peftfiles.compilers import compilers_restored

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def fold(
    model: Any, folder: Path, *, precision: str, device: str, pad_id: int | None = None,
    quantizer: Quantizer | None = None,
) -> Any:  # fmt: skip
    """See `protocols.Adapter.fold`: the base with the artifact's additions merged.

    Raises:
        UserError: the artifact was made for another model, or its file is damaged.
        RecipeError: a weight of the base cannot be read as numbers.
    """
    import torch
    from finetooth_torchshared.kept_in_fp32 import cast
    from finetooth_torchshared.quantised import dequantise, is_quantised, quantise

    if is_quantised(model):
        model = dequantise(model, torch.float32).float()

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
    made = type(model)
    whole = merged(model, folder, pad_id)
    if kind_of(type(whole).__name__):
        whole = as_language_model(whole, made)
    plain = cast(whole.requires_grad_(False), dtypes[precision], device if quantizer is None else "cpu").eval()
    return plain if quantizer is None else quantise(plain, quantizer, device).eval()


def merged(model: Any, adapter: Path, pad_id: int | None = None) -> Any:
    """The base with the adapter folded in by peft's own merge; `model` is changed in place. Of an adapter with a scalar
    head the result is transformers' classifier.

    A head that shares its weight with the embedding is given one of its own first if the adapter touches either, since
    the sum would reach both.

    Args:
        pad_id: for the config of a classifier.

    Raises:
        UserError: the adapter was made for another model, its file is damaged, or the base is quantised.
    """
    from finetooth_torchshared.quantised import is_quantised

    if is_quantised(model):
        raise UserError(
            f"{adapter}: its base is quantised, and a sum cannot be stored in its bits",
            action="use the adapter with its base, without a merge",
        )
    kind = classifier_kind(adapter)
    if kind is not None:
        model = as_classifier(model, kind, pad_id=pad_id)
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings(), compilers_restored():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")  # untied below
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft reads it
            adapted = PeftModel.from_pretrained(model, str(adapter), torch_device="cpu").eval()
    except SafetensorError as error:
        raise UserError(
            f"{adapter / WEIGHTS} cannot be read: {error}", action="the file is damaged: get it again from its source"
        ) from error
    except (RuntimeError, ValueError, UserWarning) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{adapter} does not fit its base model: {reason}", action="merge it into the model it was trained on"
        ) from error
    if getattr(adapted.active_peft_config, "layer_replication", None):
        raise UserError(
            f"{adapter} cannot be merged: by layer_replication its layers share weights of the base, and each has "
            "another sum",
            action="use the adapter with its base, by peft",
        )
    base: Any = adapted.get_base_model()
    if kind is None and getattr(base.config, "tie_word_embeddings", False) and _differ(base):
        _untie(base)
    try:
        return adapted.merge_and_unload(safe_merge=True)
    except RuntimeError as error:  # also NotImplementedError: of a kind of adapter, or lora_bias over no bias
        raise UserError(
            f"{adapter} cannot be merged: {error}", action="use the adapter with its base, by peft"
        ) from error
    except ValueError as error:
        raise UserError(
            f"merging {adapter} gives numbers that are not finite: {error}", action="use --precision fp32"
        ) from error


def _differ(base: Any) -> bool:
    """Whether the adapter gives embedding and head, which share a weight, different ones."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import TrainableTokensWrapper

    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    own_rows = isinstance(head, TrainableTokensWrapper) and not head.token_adapter.tied_adapter
    return own_rows or any(isinstance(end, BaseTunerLayer) for end in (embedding, head))


def _untie(base: Any) -> None:
    """Give the head a copy of the weight it shares with the embedding. Trained rows of tokens are in the copy if an
    addition is around them, since peft would drop them when it merges that."""
    import torch
    from peft.utils.other import TrainableTokensWrapper

    head = base.get_output_embeddings()
    inner: Any = head.token_adapter.base_layer if isinstance(head, TrainableTokensWrapper) else head
    inner = getattr(inner, "base_layer", inner)
    weight = torch.nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
    if isinstance(inner, TrainableTokensWrapper):
        head.base_layer = inner = inner.token_adapter.base_layer
    inner.weight = weight
    base.config.tie_word_embeddings = False
