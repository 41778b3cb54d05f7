"""Hidden states of models that put images among their tokens in the class that makes logits, as Llama 4 does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class EmbeddedImages(nn.Module):
    """The decoder, with features of images instead of the embeddings of their tokens.

    It has only the decoder's parameters: the towers stay in the model.

    Args:
        model: with the functions that transformers gives such a class: `get_image_features`, a
            `multi_modal_projector`, `get_placeholder_mask`.
        decoder: in the model.
    """

    def __init__(self, model: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that it is not a submodule
        self._decoder = decoder
        self.config = decoder.config

    def forward(self, input_ids: Tensor, pixel_values: Tensor | None = None, **others: Any) -> Any:
        """The decoder's output.

        Args:
            input_ids: (S, T).
            pixel_values: tiles of all images, row by row.
        """
        if pixel_values is None:
            return self._decoder(input_ids=input_ids, **others)
        model: Any = self._model[0]
        embedded = model.get_input_embeddings()(input_ids)
        seen = model.get_image_features(pixel_values=pixel_values, return_dict=True).last_hidden_state
        features = model.multi_modal_projector(seen.flatten(0, -2)).to(embedded.dtype)
        places = model.get_placeholder_mask(input_ids, inputs_embeds=embedded, image_features=features)
        return self._decoder(inputs_embeds=torch.masked_scatter(embedded, places, features), **others)


def seeing(model: nn.Module, body: nn.Module, towers: tuple[nn.Module, ...]) -> nn.Module:
    """The body, or the body with its towers if they are outside of it.

    Patches attend to each other in both directions. In transformers' Phi-4 they attend only to earlier ones if no image
    of a call has a border, and in both directions if one has: the features of an image would depend on the others.
    """
    for module in (module for tower in towers for module in tower.modules()):
        if getattr(module, "is_causal", False):
            module.is_causal = False  # type: ignore[assignment]
    inside = {id(module) for module in body.modules()}
    return EmbeddedImages(model, body) if any(id(tower) not in inside for tower in towers) else body
