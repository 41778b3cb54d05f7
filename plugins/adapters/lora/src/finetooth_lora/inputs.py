"""EVA (Paischer et al., 2024, arXiv:2410.07170): A starts with the directions of the largest variation of a module's
inputs.

The right singular vectors of the inputs X (tokens, inputs) are the eigenvectors of X^T X, summed over rows one after
the other: this is exact, unlike incremental SVDs of batches. B is zero, so the model initially does not change. All
ranks are equal: the paper's redistribution (its rho) is 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from finetooth_peftfiles.layers import NAME
from torch import Tensor

from finetooth_lora.sizes import EVA_ROOM


@torch.no_grad()
def begin_with_inputs(model: Any, layers: Mapping[str, Any], rows: Sequence[Sequence[int]]) -> None:
    """Set A of each layer.

    Args:
        model: the model with the layers; B is zero.
        layers: peft's linear ones, by path.
        rows: of token ids.
    """
    training = model.training
    model.eval()
    device = next(iter(layers.values())).lora_A[NAME].weight.device
    for group in _groups(layers):
        sums = {path: torch.zeros(layer.in_features, layer.in_features, device=device) for path, layer in group.items()}

        def watch(path: str, into: Mapping[str, Tensor] = sums) -> Any:
            def look(module: Any, args: tuple[Any, ...]) -> None:
                read = args[0].detach().flatten(0, -2).float()
                into[path].addmm_(read.t(), read)

            return look

        handles = [layer.register_forward_pre_hook(watch(path)) for path, layer in group.items()]
        try:
            for row in rows:
                model(input_ids=torch.tensor([list(row)], device=device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        for path, layer in group.items():
            weight = layer.lora_A[NAME].weight
            weight.data.copy_(directions(sums.pop(path), len(weight)))
    model.train(training)


def directions(moment: Tensor, rank: int) -> Tensor:
    """(rank, inputs): eigenvectors of the largest eigenvalues, the largest first, each with a positive element of
    largest magnitude.

    Args:
        moment: (inputs, inputs), X^T X.
    """
    vectors = torch.linalg.eigh(moment.double())[1].flip(-1)[:, :rank].T
    at = vectors.abs().argmax(1, keepdim=True)
    signed: Tensor = vectors * vectors.gather(1, at).sign()
    return signed.to(moment.dtype)


def _groups(layers: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Layers whose sums fit into `EVA_ROOM`, in their order."""
    group: dict[str, Any] = {}
    size = 0
    for path, layer in layers.items():
        takes = 4 * layer.in_features**2
        if group and size + takes > EVA_ROOM:
            yield group
            group, size = {}, 0
        group[path] = layer
        size += takes
    if group:
        yield group
