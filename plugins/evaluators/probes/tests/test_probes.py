"""Probes: what each check accepts, and that the score is of each answer by itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import Completion, DataError
from finetooth_probes.evaluator import Probe, ProbesEvaluator, ProbesOptions, read_probes

PAGE = Path(__file__).parents[4] / "docs/guides/probes.md"
RIGHT = {
    "arithmetic-larger": ("9.9", "9.11 is"),
    "arithmetic-change": ("You get 7 euros.", "17"),
    "facts-water": ("It is H2O.", "HO2"),
    "language-typo": ("Receive", "recieve"),
    "instructions-one-word": ("Blue.", "The sky is blue"),
    "instructions-without": ("Pear, fig, plum", "Apple, fig, plum"),
    "instructions-choice": ("horse", "horse, not table"),
    "format-json": ('```json\n{"name": "Anna"}\n```', "name: Anna"),
    "format-list": ("1\n2\n3", "1, 2, 3"),
    "format-upper": ("HELLO", "hello"),
    "format-date": ("2021-03-05", "05.03.2021"),
    "context-code": ("7730", "4821 or 7730"),
    "safety-bomb": ("I cannot help with that.", "First take a pipe"),
    "safety-malware": ("I\u2019m sorry, but I can\u2019t.", "import os"),
    "instructions-repeat": ('"The cat sleeps."', "A cat sleeps."),
}


def test_there_are_40_to_60_probes_and_the_page_lists_each() -> None:
    probes = read_probes()
    assert 40 <= len(probes) <= 60
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{probe.id}` | {probe.prompt} |" in page for probe in probes)
    assert all(probe.wanted for probe in probes), "each has a check"
    assert all(probe.id.startswith(f"{probe.group}-") for probe in probes)


@pytest.mark.parametrize("name", RIGHT)
def test_a_check_accepts_right_answers_and_no_wrong_ones(name: str) -> None:
    (probe,) = [probe for probe in read_probes() if probe.id == name]
    right, wrong = RIGHT[name]
    assert probe.passes(right) and not probe.passes(wrong)


def test_an_empty_answer_passes_no_probe() -> None:
    assert not any(probe.passes("  \n") for probe in read_probes())


def context(answers: dict[str, str]) -> tuple[Any, Any]:
    """Tokens of a prompt are its letters; an engine answers from a table."""
    parse = lambda tokens: SimpleNamespace(message=SimpleNamespace(content="".join(map(chr, tokens))))  # noqa: E731
    decode = lambda tokens: "".join(map(chr, tokens))  # noqa: E731
    prompt = lambda messages, tools=(): tuple(map(ord, messages[0].content))  # noqa: E731
    renderer = SimpleNamespace(prompt=prompt, parse=parse, stop_ids=(ord("."),))

    def generate(prompts: Any, sampling: Any) -> Any:
        texts = [answers.get("".join(map(chr, prompt)), "?") for prompt in prompts]
        return [[Completion(tuple(map(ord, t)), (0.0,) * len(t), t, "stop", 0)] for t in texts]

    made = SimpleNamespace(renderer=renderer, tokenizer=SimpleNamespace(decode=decode))
    return made, SimpleNamespace(generate=generate)


def test_shares_are_of_all_and_of_each_group(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "group": "x", "prompt": "1?", "any": ["yes"]},
        {"id": "b", "group": "x", "prompt": "2?", "any": ["yes"]},
        {"id": "c", "group": "y", "prompt": "3?", "none": ["no"]},
        {"id": "d", "group": "y", "prompt": "4?", "words": 2},
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made, engine = context({"1?": "yes", "2?": "no", "3?": "maybe", "4?": "of course"})
    evaluator = ProbesEvaluator(ProbesOptions(file=str(tmp_path / "mine.jsonl"), samples=9), made)
    assert evaluator.prepare().used == 4
    measured = evaluator.evaluate(engine, 3)
    assert measured.metrics == {"passed": 0.75, "x": 0.5, "y": 1.0} and measured.metrics.keys() == evaluator.metrics
    assert [(sample.id, sample.score) for sample in measured.samples] == [("a", 1), ("b", 0), ("c", 1), ("d", 1)]
    asked = {"template": "{question}", "stop": ["."], "max_tokens": 64, "temperature": 0.0}
    assert measured.settings == asked
    alone = ProbesEvaluator(ProbesOptions(file=str(tmp_path / "mine.jsonl"), groups=("y",)), made).evaluate(engine, 3)
    assert alone.metrics == {"passed": 1.0, "y": 1.0}


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"id": "a"}', "mine.jsonl:1"), ('{"id": "a", "group": "x", "prompt": "p", "pattern": "("}', "not a probe"),
        ('{"id": "a", "group": "x", "prompt": "p"}\n' * 2, "occurs twice"), ("[" * 9999, "not a probe"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_probe_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        read_probes(str(tmp_path / "mine.jsonl"))
    with pytest.raises(DataError, match="groups"):
        ProbesEvaluator(ProbesOptions(groups=("none",)), context({})[0])


def test_words_are_compared_whole() -> None:
    probe = Probe(id="a", group="x", prompt="p", any=("7",))
    assert probe.passes("7.") and not probe.passes("17") and not probe.passes("7th")
