"""Completions that fit a JSON schema: which tokens may come next, by llguidance's Earley parser over the tokenizer."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import EngineError, Sampling
from finetooth_hooks.protocols import Tokenizer
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

REMEMBERED = 8
"""Schemas, and sets of tokens that end a completion, which are kept ready."""


class SchemaState:
    """How far one completion has come in its schema."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def take(self, token: int) -> bool:
        """The completion's next token; True if nothing can follow it.

        Raises:
            EngineError: the schema does not allow it, or became too complex on the way.
        """
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise EngineError(f"sampling.schema: {_line(self._matcher.get_error())}", action="make the schema simpler")
        return self._matcher.is_stopped()

    def allowed(self, vocabulary: int) -> NDArray[np.bool_]:
        """(V,) boolean: the tokens that may come next. Ids beyond the tokenizer's never may."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")[:vocabulary]
        if not bits.any():
            why = _line(self._matcher.get_error()) or "no token of this tokenizer can continue it"
            raise EngineError(f"sampling.schema: {why}", action="make the schema simpler")
        return np.pad(bits, (0, vocabulary - len(bits))).astype(np.bool_)


class Schemas:
    """Schemas of one tokenizer, compiled when they are first asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._spellings = ""
        self._readers: dict[frozenset[int], LLTokenizer] = {}
        self._compiled: dict[tuple[str, frozenset[int]], LLMatcher] = {}

    def begin(self, schema: str, stop_ids: frozenset[int]) -> SchemaState:
        """A completion that has no token yet.

        Args:
            schema: JSON, as `Sampling.schema` has it.
            stop_ids: end a completion; they may come where the schema is complete.

        Raises:
            EngineError: the text is not a JSON schema, has what the parser does not know, or the tokenizer is slow.
        """
        key = schema, stop_ids
        if key not in self._compiled:
            if len(self._compiled) >= REMEMBERED:
                self._compiled.clear()
            self._compiled[key] = self._compile(schema, self._reader(stop_ids))
        return SchemaState(self._compiled[key].deep_copy())

    def check(self, sampling: Sampling, stop_ids: frozenset[int]) -> None:
        """Whether completions can be held to the schema of a sampling, if it has one.

        Raises:
            EngineError: see `begin`; or the sampling asks what tokens are drawn from, which a schema changes.
        """
        if sampling.schema is None:
            return
        if sampling.drawn:
            raise EngineError("sampling.drawn cannot be combined with sampling.schema", action="leave one of them out")
        self.begin(sampling.schema, stop_ids)

    def _compile(self, schema: str, reader: LLTokenizer) -> LLMatcher:
        try:
            content = json.loads(schema)
            if not isinstance(content, dict):
                raise ValueError("it is not an object")
            # spaces as json.dumps writes them: what may be as long as it likes is written on and on by small models
            grammar = LLMatcher.grammar_from_json_schema(content, defaults={"whitespace_flexible": False})
        except (ValueError, RecursionError) as error:
            raise EngineError(f"sampling.schema: {_line(str(error))}", action="give a JSON schema") from error
        matcher = LLMatcher(reader, grammar, log_level=0)
        if matcher.is_error():
            raise EngineError(
                f"sampling.schema: {_line(matcher.get_error())}", action="leave out what the schema cannot be held to"
            )
        return matcher

    def _reader(self, stop_ids: frozenset[int]) -> LLTokenizer:
        if stop_ids not in self._readers:
            if len(self._readers) >= REMEMBERED:
                self._readers.clear()
            end = self._tokenizer.eos_id
            ends = sorted(stop_ids) or ([] if end is None else [end])
            try:
                self._readers[stop_ids] = LLTokenizer(self._json(), eos_token=ends or None)
            except ValueError as error:
                raise EngineError(
                    f"sampling.schema: the tokenizer cannot be read: {_line(str(error))}",
                    action="sample without a schema",
                ) from error
        return self._readers[stop_ids]

    def _json(self) -> str:
        """The tokenizer as the tokenizers library writes it, added tokens included."""
        if not self._spellings:
            with tempfile.TemporaryDirectory() as folder:
                self._tokenizer.save(Path(folder))
                file = Path(folder) / "tokenizer.json"
                if not file.is_file():
                    raise EngineError(
                        "sampling.schema: the tokenizer is not a fast one", action="sample without a schema"
                    )
                content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            self._spellings = json.dumps({**content, "truncation": None, "padding": None})
        return self._spellings


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
