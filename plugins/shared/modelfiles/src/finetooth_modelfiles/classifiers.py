"""How a scalar head is kept in files: by the names of transformers' classifiers and of peft; imports no framework."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import PlanError
from finetooth_toolbox.saved_heads import LABELS

HEAD = "score"
"""Name of a head's module, in transformers' classifiers and in a language model that carries one."""
CRITIC_FILE = "critic/head.safetensors"
"""A critic's head in the artifact of a language model: in a folder of its own, so that nobody takes it for a part of
the model."""
PEFT_TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}
"""peft's names for the tasks of classifiers."""


def no_classifier(model_type: str, kind: str) -> PlanError:
    """The error for a model type that transformers cannot load with a head for labels."""
    return PlanError(
        f"model: transformers has no {kind} classifier for model type {model_type!r}, and the trained head could be "
        "loaded by nothing",
        action="choose a model of another family, such as Llama, Qwen, Mistral or Gemma",
    )


def class_name(model_type: str, kind: str) -> str:
    """transformers' class for models of a type with a head for labels.

    Raises:
        PlanError: the model has no such head.
    """
    auto: Any = import_module("transformers.models.auto.modeling_auto")
    names = {
        "sequence": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "token": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    }[kind]
    if model_type not in names:
        raise no_classifier(model_type, kind)
    return str(names[model_type])


def classifier_kind(adapter: Path) -> str | None:
    """The objects that an adapter's head classifies, `sequence` or `token`; None without a head."""
    task = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("task_type")
    return next((kind for kind, name in PEFT_TASKS.items() if name == task), None)


def folded_config(folder: Path) -> dict[str, Any]:
    """See `protocols.Adapter`: peft's `adapter_config.json` shows whether the adapter has a head."""
    kind = classifier_kind(folder)
    if kind is None:
        return {}
    labels = {str(index): f"LABEL_{index}" for index in range(LABELS[kind])}
    return {"architectures": [f"For{kind.capitalize()}Classification"], "id2label": labels}
