"""Linear modules whose weight the model's own code reads."""

from __future__ import annotations

from finetooth_modelfiles.classifiers import HEAD
from torch import nn


def is_only_read(model: nn.Module, path: str) -> bool:
    """Whether the model's own code reads the weight of this linear module: a Mamba layer of transformers hands it to a
    kernel, Hunyuan's router asks for its type. Such a weight stays as it is."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    return name == "wg" or (name in ("out_proj", "dt_proj") and hasattr(owner, "A_log") and hasattr(owner, "D"))


def called_linear(model: nn.Module, path: str) -> nn.Linear | None:
    """The linear module at a path; None for any other module, for the head, and where `is_only_read`."""
    module, head = model.get_submodule(path), getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(module, nn.Linear) or module is head or path.rpartition(".")[2] == HEAD:
        return None
    return None if is_only_read(model, path) else module
