"""Facts of the served base models, without their weights."""

from __future__ import annotations

import threading

from finetooth_hooks import CommandContext
from finetooth_hooks.protocols import ModelFacts, Tokenizer

from finetooth_server.settings import Settings


class Bases:
    """Facts of base models, read at their first use.

    Args:
        context: for reading them.
    """

    def __init__(self, context: CommandContext, settings: Settings) -> None:
        self.context, self.settings = context, settings
        self._tokenizers: dict[str, Tokenizer] = {}
        self._tokenizing = threading.Lock()
        self._facts: dict[str, ModelFacts] = {}
        self._describing = threading.Lock()

    def tokenizer(self, base: str) -> Tokenizer:
        """The tokenizer of a served base model."""
        with self._tokenizing:
            if base not in self._tokenizers:
                self._tokenizers[base] = self.context.context(self.settings.models[base]).tokenizer
            return self._tokenizers[base]

    def facts(self, base: str) -> ModelFacts:
        """Sizes of a served base model, without its weights."""
        with self._describing:
            if base not in self._facts:
                self._facts[base] = self.context.context(self.settings.models[base]).facts
            return self._facts[base]
