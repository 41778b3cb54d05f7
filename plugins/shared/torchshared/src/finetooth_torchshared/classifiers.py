"""A language model as transformers' classifier of the same modules, and back: how scalar heads are loaded and saved.

transformers keeps a decoder with a head for words and the same decoder with a head for labels as two classes over one
base model. What is done here moves that base model from one to the other; no weight is copied.
"""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any

from finetooth_hooks.errors import PlanError
from finetooth_modelfiles.classifiers import HEAD, no_classifier
from finetooth_toolbox.saved_heads import LABELS


def classifier_class(config: Any, kind: str) -> Any:
    """transformers' class for models of a config (its object).

    Raises:
        PlanError: there is none.
    """
    auto: Any = import_module("transformers.models.auto.modeling_auto")
    table = {
        "sequence": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "token": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    }[kind]
    class_ = table.get(type(config), None)
    if class_ is None:
        raise no_classifier(str(getattr(config, "model_type", "")), kind)
    return class_


def as_classifier(model: Any, kind: str, head: Any | None = None, pad_id: int | None = None) -> Any:
    """A classifier over a language model's own modules; both compute with the same parameters.

    Args:
        model: a causal transformers model, with an adapter's layers or without.
        kind: `sequence` or `token`.
        head: its linear module; default: a new one, zero.
        pad_id: goes into the config, by which transformers finds the last token of a padded text.

    Raises:
        PlanError: transformers has no such class, or one that is built otherwise than the model.
    """
    torch: Any = import_module("torch")
    config = copy.deepcopy(model.config)
    config.num_labels = LABELS[kind]
    if kind == "token":
        config.id2label, config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
        config.classifier_dropout = 0.0
    if pad_id is not None:
        config.get_text_config().pad_token_id = config.pad_token_id = pad_id
    made = classifier_class(config, kind)
    with torch.device("meta"):
        classifier = made(config)
    prefix = classifier.base_model_prefix
    body: Any = model.base_model
    place: Any = getattr(classifier, prefix, None)
    old = getattr(classifier, HEAD, None)
    if type(body) is not type(place) or not isinstance(old, torch.nn.Linear):
        raise PlanError(
            f"model: {made.__name__} of transformers is built otherwise than {type(model).__name__}, and the head "
            "cannot be moved from one to the other",
            action="choose a model of another family, such as Llama, Qwen, Mistral or Gemma",
        )
    if head is None:
        like = next(body.parameters())
        biased = old.bias is not None
        new: Any = torch.nn.utils.skip_init(
            torch.nn.Linear, old.in_features, LABELS[kind], bias=biased, device=like.device, dtype=like.dtype
        )
        for parameter in new.parameters():
            torch.nn.init.zeros_(parameter)
        head = new
    setattr(classifier, prefix, body)
    setattr(classifier, HEAD, head)
    if hasattr(model, "peft_config"):  # what peft notes on a model that it changed
        classifier.peft_config = model.peft_config
    return classifier.train(model.training)


def as_language_model(classifier: Any, made: Any) -> Any:
    """A language model over a classifier's own modules, which carries the classifier's head as `score`. Its head for
    words is the embedding where they are tied, else zero: nobody has trained one.

    Args:
        made: transformers' class for the language model.

    Raises:
        PlanError: it is built otherwise than the classifier.
    """
    torch: Any = import_module("torch")
    with torch.device("meta"):
        model = made(copy.deepcopy(classifier.config))
    body, place = classifier.base_model, getattr(model, model.base_model_prefix, None)
    if type(body) is not type(place):
        raise PlanError(
            f"model: {made.__name__} of transformers is built otherwise than {type(classifier).__name__}",
            action="choose a model of another family, such as Llama, Qwen, Mistral or Gemma",
        )
    setattr(model, model.base_model_prefix, body)
    words, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        words.weight = embedding.weight
    else:
        words.weight = torch.nn.Parameter(torch.zeros_like(embedding.weight))
    if getattr(words, "bias", None) is not None:
        words.bias = torch.nn.Parameter(torch.zeros(words.bias.shape, dtype=embedding.weight.dtype))
    setattr(model, HEAD, getattr(classifier, HEAD))
    return model.train(classifier.training)
