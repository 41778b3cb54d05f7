"""Completions that fit a form (a JSON schema, a regular expression, a grammar): which tokens may come next, by
llguidance's Earley parser over the tokenizer."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import EngineError, Sampling
from finetooth_hooks.protocols import Tokenizer
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

REMEMBERED = 8
"""Forms, and sets of tokens that end a completion, which are kept ready."""

ENOUGH = 0.1
"""Probability that the allowed tokens must have for their set to be written by the tokens that it lacks: that of the
lacking ones is subtracted from 1, and less would be lost in its rounding."""


class SchemaState:
    """How far one completion has come in its form.

    Args:
        kind: of the form, in messages: a field of `Sampling`.
    """

    def __init__(self, matcher: LLMatcher, kind: str) -> None:
        self._matcher, self._kind = matcher, kind

    def take(self, token: int) -> bool:
        """The completion's next token; True if nothing can follow it.

        Raises:
            EngineError: the form does not allow it, or became too complex on the way.
        """
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise self._wrong(_line(self._matcher.get_error()))
        return self._matcher.is_stopped()

    def allowed(self, vocabulary: int) -> NDArray[np.bool_]:
        """(V,) boolean: the tokens that may come next. Ids beyond the tokenizer's never may."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")[:vocabulary]
        if not bits.any():
            why = _line(self._matcher.get_error()) or "no token of this tokenizer can continue it"
            raise self._wrong(why)
        return np.pad(bits, (0, vocabulary - len(bits))).astype(np.bool_)

    def _wrong(self, problem: str) -> EngineError:
        return EngineError(f"sampling.{self._kind}: {problem}", action=f"make the {self._kind} simpler")


class Schemas:
    """Forms of one tokenizer, compiled when they are first asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._spellings = ""
        self._readers: dict[frozenset[int], LLTokenizer] = {}
        self._compiled: dict[tuple[tuple[str, str], frozenset[int]], LLMatcher] = {}

    def begin(self, form: tuple[str, str] | None, stop_ids: frozenset[int]) -> SchemaState | None:
        """A completion that has no token yet; None where it may say anything.

        Args:
            form: as `Sampling.form` has it.
            stop_ids: end a completion; they may come where the form is complete.

        Raises:
            EngineError: the text is invalid for its kind, has unsupported parts, or the tokenizer is not a fast one.
        """
        if form is None:
            return None
        key = form, stop_ids
        if key not in self._compiled:
            if len(self._compiled) >= REMEMBERED:
                self._compiled.clear()
            self._compiled[key] = self._compile(*form, self._reader(form[0], stop_ids))
        return SchemaState(self._compiled[key].deep_copy(), form[0])

    def check(self, sampling: Sampling, stop_ids: frozenset[int]) -> None:
        """Whether completions can be held to the form of a sampling, if it has one.

        Raises:
            EngineError: see `begin`; or it has several.
        """
        if [sampling.schema, sampling.regex, sampling.grammar].count(None) < 2:
            raise EngineError("sampling: schema, regex and grammar do not go together", action="give one of them")
        self.begin(sampling.form, stop_ids)

    def _compile(self, kind: str, text: str, reader: LLTokenizer) -> LLMatcher:
        matcher = LLMatcher(reader, _grammar(kind, text), log_level=0)
        if matcher.is_error():
            raise EngineError(
                f"sampling.{kind}: {_line(matcher.get_error())}", action=f"leave out what the {kind} cannot be held to"
            )
        return matcher

    def _reader(self, kind: str, stop_ids: frozenset[int]) -> LLTokenizer:
        if stop_ids not in self._readers:
            if len(self._readers) >= REMEMBERED:
                self._readers.clear()
            end = self._tokenizer.eos_id
            ends = sorted(stop_ids) or ([] if end is None else [end])
            try:
                self._readers[stop_ids] = LLTokenizer(self._json(kind), eos_token=ends or None)
            except ValueError as error:
                raise EngineError(
                    f"sampling.{kind}: the tokenizer cannot be read: {_line(str(error))}",
                    action=f"sample without a {kind}",
                ) from error
        return self._readers[stop_ids]

    def _json(self, kind: str) -> str:
        """The tokenizer as the tokenizers library writes it, added tokens included."""
        if not self._spellings:
            with tempfile.TemporaryDirectory() as folder:
                self._tokenizer.save(Path(folder))
                file = Path(folder) / "tokenizer.json"
                if not file.is_file():
                    raise EngineError(
                        f"sampling.{kind}: the tokenizer is not a fast one", action=f"sample without a {kind}"
                    )
                content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            self._spellings = json.dumps({**content, "truncation": None, "padding": None})
        return self._spellings


def _grammar(kind: str, text: str) -> str:
    """The grammar for llguidance.

    Raises:
        EngineError: the text is not a JSON schema.
    """
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(text)
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
        # no spaces: what may be as long as it likes is written on and on by small models
        return LLMatcher.grammar_from_json_schema(content, defaults={"whitespace_flexible": False})
    except (ValueError, RecursionError) as error:
        raise EngineError(f"sampling.schema: {_line(str(error))}", action="give a JSON schema") from error


def problem_of(kind: str, text: str) -> str:
    """The reason why a form (`Sampling.form`) cannot be enforced with any tokenizer; empty if it can."""
    try:
        return _line(LLMatcher.validate_grammar(_grammar(kind, text)))
    except EngineError as error:
        return error.problem.partition(": ")[2]


def drawn_among(allowed: NDArray[np.bool_], logits: NDArray[Any], temperature: float) -> tuple[int, ...]:
    """A set of tokens as `Completion.kept` has it: by its own ids, or by those that it lacks where they are fewer.

    Args:
        allowed: (V,).
        logits: (V,) before the form left tokens out.
    """
    weights = np.exp((logits - logits.max()) / temperature)
    fewer = 2 * int(allowed.sum()) > len(allowed) and weights[allowed].sum() >= ENOUGH * weights.sum()
    return _ids(np.packbits(~allowed if fewer else allowed).tobytes(), fewer)


@lru_cache(maxsize=256)  # in free text the set is the same again and again: rollouts share it
def _ids(packed: bytes, lacking: bool) -> tuple[int, ...]:
    ids = np.flatnonzero(np.unpackbits(np.frombuffer(packed, np.uint8)))
    return tuple((-1 - ids if lacking else ids).tolist())


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
