"""The evaluator: asks each probe by itself, greedily, and checks the answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from finetooth_hooks import Context, DataError, DataReport, Engine, Evaluation, Message, Options, Sample
from finetooth_hooks.bases import EvaluatorBase
from finetooth_rendering import asking
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class ProbesOptions(Options):
    """Options of the evaluator `probes`."""

    file: str = ""
    """File with your own probes: JSON Lines with `id`, `group`, `prompt` and checks. Empty: finetooth's probes."""
    groups: tuple[str, ...] = ()
    """Groups of probes to ask; empty: all."""
    max_tokens: int = Field(default=64, ge=1)
    """Longest answer, in tokens."""
    samples: int = Field(default=3, ge=0)
    """Number of probes to show with their answers, the first ones."""


class Probe(BaseModel):
    """A question, and what its answer must be. Texts are compared as whole words, without regard to case.

    Attributes:
        all: each of them must be in the answer.
        any: one of them must be.
        none: no one of them may be.
        pattern: a regular expression that the whole answer must match.
        words: the most words that it may have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    group: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    all: tuple[str, ...] = ()
    any: tuple[str, ...] = ()
    none: tuple[str, ...] = ()
    pattern: str = ""
    words: int | None = None

    def passes(self, answer: str) -> bool:
        """Whether an answer is what it must be. An empty one never is."""
        text = unicodedata.normalize("NFKC", answer).strip()
        return (
            bool(text)
            and all(_has(text, wanted) for wanted in self.all)
            and (not self.any or any(_has(text, wanted) for wanted in self.any))
            and not any(_has(text, banned) for banned in self.none)
            and (not self.pattern or re.fullmatch(self.pattern, text, re.DOTALL) is not None)
            and (self.words is None or len(text.split()) <= self.words)
        )

    @property
    def wanted(self) -> str:
        """The check, for people."""
        parts = [f"{name}: {', '.join(texts)}" for name in ("all", "any", "none") if (texts := getattr(self, name))]
        parts += [f"pattern: {self.pattern}"] if self.pattern else []
        return "; ".join(parts + ([f"at most {self.words} words"] if self.words else []))


class ProbesEvaluator(EvaluatorBase):
    """`protocols.Evaluator`: the share of probes that pass, and that of each group."""

    noun = "probe"

    def __init__(self, options: ProbesOptions, context: Context) -> None:
        self._options, self._context = options, context
        self._probes = [p for p in read_probes(options.file) if not options.groups or p.group in options.groups]
        if not self._probes:
            raise DataError(
                "evaluate.evaluators.probes.groups", "no probe belongs to these groups", action="leave groups out"
            )

    @property
    def metrics(self) -> frozenset[str]:
        """See `protocols.Evaluator.metrics`."""
        return frozenset({"passed", *(probe.group for probe in self._probes)})

    def prepare(self) -> DataReport:
        """Render the probes."""
        lengths = [len(tokens) for tokens in self._prompts()]
        count = len(lengths)
        return DataReport(split="probes", rows=count, used=count, tokens=sum(lengths), longest=max(lengths))

    def evaluate(self, engine: Engine, step: int) -> Evaluation:
        """Ask each probe greedily."""
        most, prompts = self._options.max_tokens, self._prompts()
        answers, _ = asking.ask(engine, self._context, prompts, most, [True] * len(prompts))
        passed = [probe.passes(text) for probe, text in zip(self._probes, answers, strict=True)]
        groups = dict.fromkeys(probe.group for probe in self._probes)
        scores = {
            name: [fine for probe, fine in zip(self._probes, passed, strict=True) if probe.group == name]
            for name in groups
        }
        shown = list(zip(self._probes, answers, passed, strict=True))[: self._options.samples]
        return Evaluation(
            name="probes",
            step=step,
            metrics={"passed": _share(passed), **{name: _share(fine) for name, fine in scores.items()}},
            samples=tuple(Sample(probe.id, probe.prompt, probe.wanted, text, float(ok)) for probe, text, ok in shown),
            rows=len(passed),
            settings=asking.settings(self._context, most, chat=True),
        )

    def _prompts(self) -> list[tuple[int, ...]]:
        return [tuple(self._context.renderer.prompt([Message("user", probe.prompt)], ())) for probe in self._probes]


def read_probes(file: str = "") -> list[Probe]:
    """Probes of a file.

    Args:
        file: JSON Lines; empty: those of finetooth.

    Raises:
        DataError: it cannot be read, a line is not a probe, or two have one id.
    """
    name = file or "probes.jsonl"
    place = Path(file) if file else files("finetooth_probes") / name
    try:
        lines = [line for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(name, f"the probes cannot be read: {error}", action="check the path") from error
    probes: list[Probe] = []
    for number, line in enumerate(lines, start=1):
        try:
            probe = TypeAdapter(Probe).validate_json(line)
            re.compile(probe.pattern)
        except (ValidationError, re.error) as error:
            first = str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error)
            raise DataError(f"{name}:{number}", f"not a probe: {first}", action="fix the line") from error
        if any(probe.id == before.id for before in probes):
            raise DataError(f"{name}:{number}", f"the id {probe.id!r} occurs twice", action="give it another one")
        probes.append(probe)
    return probes


def _has(text: str, wanted: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text, re.IGNORECASE) is not None


def _share(passed: Sequence[bool]) -> float:
    return sum(passed) / len(passed)
