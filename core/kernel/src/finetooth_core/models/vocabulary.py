"""Tokens that a recipe adds to a model: a loader around the model's own, so that every caller sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetooth_hooks.bases import LoaderBase
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_hooks.models import TokenChanges
from finetooth_hooks.protocols import Loader, ModelInfo, Quantizer, Tokenizer

SETTING = "model.added_tokens"


class ChangedTokens(LoaderBase):
    """A `protocols.Loader` with a recipe's changes of tokens in models and tokenizers.

    Args:
        loader: the model's own.
        changes: what to change.
    """

    def __init__(self, loader: Loader, changes: TokenChanges) -> None:
        self._loader, self._changes = loader, changes
        self._tokenizers: dict[str, Tokenizer] = {}
        self._described: dict[str, ModelInfo] = {}

    def describe(self, reference: str) -> ModelInfo:
        """The model with a row for every token.

        Raises:
            RecipeError: as the loader's own, or the tokens cannot be changed.
        """
        info = self._own(reference)
        rows = int(text_config(info.config)["vocab_size"])
        size = max(rows, self.tokenizer(reference).vocab_size)
        if size == rows:
            return info
        text = {**text_config(info.config), "vocab_size": size}
        config = {**info.config, "text_config": text} if "text_config" in info.config else text
        ends = 1 if text.get("tie_word_embeddings", info.config.get("tie_word_embeddings")) else 2
        added = (size - rows) * int(text.get("hidden_size", 0)) * ends
        return replace(info, config=config, parameters=info.parameters + added)

    def tokenizer(self, reference: str) -> Tokenizer:
        """Returns the loader's tokenizer with the recipe's changes; one for each reference.

        Raises:
            RecipeError: a token that should be new is there already, or the tokenizer cannot be changed.
        """
        if reference not in self._tokenizers:
            tokenizer = self._loader.tokenizer(reference)
            if "changes" not in tokenizer.capabilities:
                raise RecipeError(
                    SETTING, "this model's tokenizer cannot be given other tokens", action="remove the setting"
                )
            self._tokenizers[reference] = tokenizer.changed(self._changes)
        return self._tokenizers[reference]

    def config(self, reference: str) -> Mapping[str, Any]:
        """The model's own config, by which a family tells its kind."""
        return self._own(reference).config

    def _own(self, reference: str) -> ModelInfo:
        """The model as its loader describes it, asked once."""
        if reference not in self._described:
            self._described[reference] = self._loader.describe(reference)
        return self._described[reference]

    def new_tokens(self, reference: str) -> tuple[int, ...]:
        """Ids whose embeddings nobody has trained."""
        tokenizer = self.tokenizer(reference)
        added = (tokenizer.token_id(token.text) for token in self._changes.added)
        return tuple(sorted({*(id_ for id_ in added if id_ is not None), *self._changes.renamed}))

    def load(
        self, reference: str, *, framework: str, precision: str, device: str, quantizer: Quantizer | None = None,
        meta: bool = False,
    ) -> Any:  # fmt: skip
        """The model with a row for every token, the new ones the mean of the others.

        Raises:
            PlanError: the framework's models cannot be given more rows.
        """
        if meta:
            raise self._cannot("build a model without its weights", "meta")
        model = self._loader.load(
            reference, framework=framework, precision=precision, device=device, quantizer=quantizer
        )
        tokenizer = self.tokenizer(reference)
        new = self.new_tokens(reference)
        if new:
            self.widen(model, tokenizer.vocab_size, new)
        for role, spelling in self._changes.roles.items():
            self._tell(model, role, tokenizer.token_id(spelling))
        return model

    @property
    def capabilities(self) -> frozenset[str]:
        """The loader's capabilities for a model with changed tokens, without `tensors`."""
        return self._loader.capabilities & {"widen", "write"}

    def widen(self, model: Any, size: int, new: Sequence[int]) -> None:
        """Gives the model rows for the new tokens.

        Raises:
            PlanError: the loader's models cannot be given more rows.
        """
        if "widen" not in self._loader.capabilities:
            raise PlanError(
                f"{SETTING}: this model's loader cannot give it room for more tokens",
                action="remove the setting, or choose another loader",
            )
        self._loader.widen(model, size, new)

    def write(self, reference: str, folder: Path, *, precision: str, of: Loader | None = None) -> None:
        """Write the model with its new tokens."""
        self._loader.write(reference, folder, precision=precision, of=of or self)

    @staticmethod
    def _tell(model: Any, role: str, id_: int | None) -> None:
        """The model's own notes of which token ends a text."""
        for config in (model.config, getattr(model, "generation_config", None)):
            if config is not None and hasattr(config, f"{role}_id"):
                setattr(config, f"{role}_id", id_)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model; all of it, if the model is nothing else."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config
