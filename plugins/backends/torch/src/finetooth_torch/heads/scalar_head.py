"""A scalar head: one number per position, from its last hidden state.

It is the module `score` of the model, so it trains, is saved and is clipped like every other parameter; in bf16 and
fp16 it has an fp32 master too. Its product is always computed in float32: it is one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetooth_hooks.compute.heads import ScalarHead
from finetooth_hooks.errors import UserError
from finetooth_modelfiles.classifiers import CRITIC_FILE, HEAD
from finetooth_torchshared.classifiers import as_classifier
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetooth_torch.precision import result_dtype

DEVIATION = 0.02
"""Standard deviation of a new head's weights, as transformers draws those of its classifiers."""


class AddedHead:
    """The head of a model.

    Args:
        base: the transformers model; an existing scalar head (of a reward model that trains further) stays.
        asked: by the method.
        hidden_size: of the states.
        generator: for the weights of a new head.
        pad_id: for the config of an artifact.
    """

    def __init__(
        self, base: nn.Module, asked: ScalarHead, hidden_size: int, generator: np.random.Generator, pad_id: int | None
    ) -> None:
        self.asked, self._pad_id = asked, pad_id
        brought = getattr(base, HEAD, None)
        like = next(parameter for parameter in base.parameters() if parameter.is_floating_point())
        weight = torch.from_numpy(generator.normal(scale=DEVIATION, size=(1, hidden_size)))
        bias = torch.zeros(1)
        if isinstance(brought, nn.Linear):
            weight, bias = _one_number(brought)
        # in full precision at first, for the optimizer's master; fp64 in an fp64 model
        module = _empty(hidden_size, 1, asked.bias, like.device, result_dtype(like.dtype))
        with torch.no_grad():
            module.weight.copy_(weight)
            if asked.bias:
                module.bias.copy_(bias)
        self.module = module
        base.add_module(HEAD, module)

    def values(self, states_md: Tensor) -> Tensor:
        """(M,) values of (M, D) states, float32 (float64 stays)."""
        dtype = result_dtype(states_md.dtype)
        bias = None if self.module.bias is None else self.module.bias.to(dtype)
        return nn.functional.linear(states_md.to(dtype), self.module.weight.to(dtype), bias).squeeze(-1)

    def classifier(self, model: Any) -> Any:
        """transformers' classifier with this head: with one label the head itself, with two a copy as their difference.
        The model itself if the artifact shall have no head."""
        if self.asked.exported_as == "none":
            return model
        head = self.module if self.asked.exported_as == "sequence" else _two_labels(self.module)
        return as_classifier(model, self.asked.exported_as, head, self._pad_id)

    def export(self, artifact: Path) -> None:
        """Write a critic's head, which has no place in the artifact's model, to a separate file."""
        if self.asked.exported_as != "none":
            return
        path = artifact / CRITIC_FILE
        path.parent.mkdir(exist_ok=True)
        save_file({n: t.detach().cpu().contiguous() for n, t in self.module.state_dict().items()}, path)

    @contextmanager
    def taking(self, model: Any, artifact: Path) -> Iterator[Any]:
        """A classifier into which an adapter restores; at the end of the `with` block, the head gets the classifier's
        weights, or those of the separate file.

        Raises:
            UserError: the file does not hold a head of this size.
        """
        if self.asked.exported_as == "none":
            yield model
            if (artifact / CRITIC_FILE).is_file():
                self._take(artifact / CRITIC_FILE)
            return
        classifier = self.classifier(model)
        yield classifier
        weight, bias = _one_number(getattr(classifier, HEAD))
        with torch.no_grad():
            self.module.weight.copy_(weight)
            if self.asked.bias:
                self.module.bias.copy_(bias)

    def _take(self, path: Path) -> None:
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} does not hold a critic's head: {error}", action="name another run") from error
        own = dict(self.module.named_parameters())
        if {name: tensor.shape for name, tensor in tensors.items()} != {name: p.shape for name, p in own.items()}:
            raise UserError(f"{path} is of a model of another size", action="name a run on the same model")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])


def _empty(inputs: int, outputs: int, bias: bool, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """A linear module without initialisation: torch would use its global generator."""
    skip_init: Any = nn.utils.skip_init  # has no types
    made = skip_init(nn.Linear, inputs, outputs, bias=bias, device=device, dtype=dtype)
    assert isinstance(made, nn.Linear)
    return made


def _one_number(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight (1, D) and bias (1,) of a head with one label; with two labels, the second minus the first."""
    weight = linear.weight.detach()
    bias = weight.new_zeros(weight.shape[0]) if linear.bias is None else linear.bias.detach()
    if weight.shape[0] == 2:
        return weight[1:] - weight[:1], bias[1:] - bias[:1]
    return weight.clone(), bias.clone()


def _two_labels(linear: nn.Linear) -> nn.Linear:
    """A head of two labels with the logits 0 and the value: softmax gives the value's sigmoid."""
    made = _empty(linear.in_features, 2, True, linear.weight.device, linear.weight.dtype)
    with torch.no_grad():
        made.weight.zero_()
        made.weight[1] = linear.weight[0]
        made.bias.zero_()
        if linear.bias is not None:
            made.bias[1] = linear.bias[0]
    return made
