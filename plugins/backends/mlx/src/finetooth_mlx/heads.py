"""A scalar head: one number per position, from its last hidden state.

It is the module `score` of the model, so it trains, is clipped and is saved like every other parameter. An artifact
holds it as transformers' classifiers do: with one label as it is, with two labels as their difference. A critic's head
is in a separate file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from finetooth_hooks import ScalarHead, UserError
from finetooth_modelfiles.classifiers import CRITIC_FILE, HEAD, PEFT_TASKS, class_name
from finetooth_toolbox.saved_heads import LABELS

DEVIATION = 0.02
"""Standard deviation of a new head's weights, as transformers draws those of its classifiers."""


def add_head(model: Any, head: ScalarHead, hidden_size: int, generator: np.random.Generator) -> None:
    """Add the head to a model; a head from the model's files stays as it is."""
    drawn = mx.array(generator.normal(scale=DEVIATION, size=(1, hidden_size)).astype(np.float32))
    model.score, model.asked_head = nn.Linear(hidden_size, 1, bias=head.bias), head
    _set(model, *(_one_number(model.brought_head) if model.brought_head else (drawn, mx.zeros((1,)))))


def values(model: Any, hidden: mx.array) -> mx.array:
    """(S, T) values of (S, T, D) states, in fp32."""
    made: mx.array = hidden.astype(mx.float32) @ model.score.weight.astype(mx.float32).T
    return (made + model.score.bias.astype(mx.float32) if model.asked_head.bias else made)[..., 0]


def scores(values_st: mx.array, mask: np.ndarray[Any, Any]) -> mx.array:
    """(S,) values at each row's last position where the mask is true; at the first position if it is true nowhere."""
    last = (np.arange(mask.shape[1]) * mask).max(axis=1)[:, None].astype(np.int32)
    return mx.take_along_axis(values_st, mx.array(last), axis=1)[:, 0]


def is_head(name: str) -> bool:
    """Whether a parameter is the head's."""
    return name.startswith(f"{HEAD}.")


def classifier_tensors(model: Any) -> dict[str, mx.array]:
    """The head with the names and shapes of transformers' classifier; empty if an artifact has no place for it."""
    head: ScalarHead | None = getattr(model, "asked_head", None)
    if head is None or head.exported_as == "none":
        return {}
    weight, bias = model.score.weight, model.score.bias if head.bias else None
    if head.exported_as == "token":  # two labels, of which the first has the logit 0
        weight = mx.concatenate([mx.zeros_like(weight), weight])
        bias = mx.concatenate([mx.zeros((1,)), mx.zeros((1,)) if bias is None else bias])
    return {f"{HEAD}.weight": weight} | ({} if bias is None else {f"{HEAD}.bias": bias})


def peft_settings(model: Any) -> dict[str, Any]:
    """The head's part of peft's config."""
    if not classifier_tensors(model):
        return {}
    return {"task_type": PEFT_TASKS[model.asked_head.exported_as], "modules_to_save": [HEAD]}


def classifier_settings(model: Any, config: Mapping[str, Any], pad_id: int | None) -> dict[str, Any]:
    """The head's part of transformers' config."""
    if not classifier_tensors(model):
        return {}
    kind = model.asked_head.exported_as
    labels = ["bad", "good"] if kind == "token" else ["LABEL_0"]
    assert len(labels) == LABELS[kind]
    made = {
        "architectures": [class_name(str(config["model_type"]), kind)],
        "id2label": {str(place): label for place, label in enumerate(labels)},
        "label2id": {label: place for place, label in enumerate(labels)},
    }
    return made | ({} if pad_id is None else {"pad_token_id": pad_id})


def write_critic(model: Any, folder: Path) -> None:
    """Write a head that has no place in the artifact's model to a separate file."""
    head: ScalarHead | None = getattr(model, "asked_head", None)
    if head is not None and head.exported_as == "none":
        (folder / CRITIC_FILE).parent.mkdir(parents=True, exist_ok=True)
        tensors = {"weight": model.score.weight} | ({"bias": model.score.bias} if head.bias else {})
        mx.save_safetensors(str(folder / CRITIC_FILE), tensors, metadata={"format": "pt"})


def take_head(model: Any, tensors: dict[str, mx.array], folder: Path) -> None:
    """Load the head from an artifact's tensors, and remove it from them; load a critic's from its file, if there is
    one.

    Raises:
        UserError: it is missing or has another size.
    """
    head: ScalarHead | None = getattr(model, "asked_head", None)
    own = {name: tensors.pop(name) for name in [name for name in tensors if is_head(name)]}
    if head is None:
        return
    if head.exported_as == "none":
        if not (folder / CRITIC_FILE).is_file():
            return
        loaded: Any = mx.load(str(folder / CRITIC_FILE))
        own = {f"{HEAD}.{name}": array for name, array in loaded.items()}
    wanted = classifier_tensors(model) or {f"{HEAD}.{n}": a for n, a in model.score.parameters().items()}
    if {name: array.shape for name, array in own.items()} != {name: array.shape for name, array in wanted.items()}:
        raise UserError(f"{folder}: it holds no head that fits", action="name the artifact of a reward model")
    _set(model, *_one_number(own))


def _set(model: Any, weight: mx.array, bias: mx.array) -> None:
    model.score.update({"weight": weight} | ({"bias": bias} if model.asked_head.bias else {}))


def _one_number(tensors: Mapping[str, mx.array]) -> tuple[mx.array, mx.array]:
    """Weight (1, D) and bias (1,) of a head with one label; with two labels, the second minus the first."""
    weight = tensors[f"{HEAD}.weight"].astype(mx.float32)
    bias = tensors.get(f"{HEAD}.bias", mx.zeros((len(weight),))).astype(mx.float32)
    return (weight[1:] - weight[:1], bias[1:] - bias[:1]) if len(weight) == 2 else (weight, bias)
