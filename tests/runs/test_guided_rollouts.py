"""Answers that are held to a form while they are drawn: all of them fit it, and training is among the same tokens."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import finetooth
import jsonschema
import numpy as np
import pytest
import regex
from finetooth_hooks import Datum, FinetoothError
from finetooth_hooks.rollouts import Rollout
from finetooth_rollouts.rollouts_file import read_rollouts
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left, rewound  # type: ignore[import-not-found]

WORDS = r"(ba|e|[0-9]){1,6}x?"
PET = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}, "age": {"enum": [1, 22]}},
       "required": ["name", "age"], "additionalProperties": False}  # fmt: skip
CHOICES = ["a.e [i]", "o", "ou + b", "x"]
LARK = 'start: "e" pair+\npair: "(" pair ")" | "a"\n'


@pytest.fixture
def online(online_recipe: Callable[..., Any]) -> Callable[..., Any]:
    """A recipe that learns from rollouts; keyword arguments go into its method."""
    method = {"name": "grpo", "num_generations": 4, "max_completion_length": 24}
    return online_recipe(method, {"batch_size": 2, "max_steps": 3})  # type: ignore[no-any-return]


def drawn(given: dict[str, Any]) -> list[Rollout]:
    """All rollouts of a run."""
    finetooth.run(given)
    return [rollout for _, of in read_rollouts(Path(given["output"])) for rollout in of]


def balanced(text: str) -> bool:
    """Whether a text is of `LARK`: every bracket pair around one `a` in the end."""
    while "(a)" in text:
        text = text.replace("(a)", "a")
    return re.fullmatch("ea+", text) is not None


def is_pet(text: str) -> bool:
    jsonschema.validate(json.loads(text), PET)
    return True


FORMS: dict[str, tuple[Any, Callable[[str], Any]]] = {
    "regex": (WORDS, re.compile(WORDS).fullmatch),
    "json": (PET, is_pet),
    "choice": (CHOICES, CHOICES.__contains__),
    "grammar": (LARK, balanced),
}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_k": 3, "repetition_penalty": 1.3}], ids=["", "cut"])
@pytest.mark.parametrize("kind", FORMS)
def test_every_answer_has_the_form_and_the_first_ratios_are_one(
    online: Callable[..., Any], kind: str, sampling: dict[str, Any], metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    form, fits = FORMS[kind]
    given = online(guided={kind: form}, num_iterations=2, beta=0.1, **sampling)
    rollouts = drawn(given)
    whole = [rollout for rollout in rollouts if rollout.outcome == "stop"]
    assert whole and all(fits(rollout.text) for rollout in whole)
    assert all(len(rollout.tokens) == 24 for rollout in rollouts if rollout.outcome == "length")
    found = metrics(Path(given["output"]))
    assert [step["ratio/min"] == step["ratio/max"] == 1.0 for step in found] == [True, False, True]
    assert max(step["sampling/sampling_logp_difference/max"] for step in found[::2]) < 1e-4


def masked_softmax(logits: np.ndarray[Any, Any], allowed: Sequence[bool]) -> np.ndarray[Any, Any]:
    """(V,) float64 log-probabilities, -inf for what is not allowed."""
    z = np.where(allowed, logits.astype(np.float64), -np.inf)
    return z - z.max() - np.log(np.exp(z - z.max()).sum())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "pattern", [WORDS, pytest.param(r"[ -pr-~]{1,9}q", marks=pytest.mark.slow)], ids=["few", "most"]
)
def test_what_may_be_drawn_is_what_can_still_match(online: Callable[..., Any], tiny_model: Path, pattern: str) -> None:
    """Every token of the vocabulary is tried behind every beginning, with partial matches of the package `regex`; the
    log-probabilities are those of a float64 softmax among them."""
    given = online(guided={"regex": pattern}, max_completion_length=8, train={"max_steps": 1})
    rollouts = drawn(given)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    engine = finetooth.engine({**given, "output": given["output"] + "-again"})  # LoRA begins as its base
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    spelled = [tokenizer.decode([id_]) for id_ in range(len(tokenizer))]
    for rollout in rollouts:
        datum = Datum.from_tokens(
            [*rollout.prompt, *rollout.tokens], [0.0] * len(rollout.prompt) + [1.0] * len(rollout.tokens)
        )
        logits = engine.forward([datum], returns=("logits",), train=False).outputs[0]["logits"][datum.mask]
        text = ""
        for place, (token, ids) in enumerate(zip(rollout.tokens, rollout.kept, strict=True)):
            kept = {-1 - id_ for id_ in ids} if ids[0] < 0 else set(ids)
            can = [
                (id_ in ends or id_ not in tokenizer.all_special_ids)
                and bool(regex.fullmatch(pattern, text + spelled[id_] * (id_ not in ends), partial=id_ not in ends))
                for id_ in range(len(tokenizer))
            ]
            allowed = [id_ in kept if ids[0] >= 0 else id_ not in kept for id_ in range(len(tokenizer))]
            whole = [id_ for id_ in range(len(tokenizer)) if "�" not in spelled[id_]]  # a part of a letter is no text
            assert [allowed[id_] for id_ in whole] == [can[id_] for id_ in whole], (text, place)
            log_p = masked_softmax(logits[place], [*allowed, *[False] * (len(logits[place]) - len(allowed))])
            assert abs(log_p[token] - rollout.logprobs[place]) < 1e-4
            text += spelled[token]
    lacking = [ids[0] < 0 for rollout in rollouts for ids in rollout.kept]
    assert any(lacking) == (pattern != WORDS)


@pytest.mark.parametrize("more", [{}, pytest.param({"prefetch": 1}, marks=pytest.mark.slow)], ids=["", "ahead"])
def test_a_killed_run_resumes_bit_for_bit(online: Callable[..., Any], more: dict[str, Any]) -> None:
    given = online(guided={"regex": WORDS}, num_iterations=2, **more)
    given |= {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    whole = rewound(folder, 1)
    assert finetooth.resume(folder).steps == 3
    assert differences(left(whole), left(folder)) == []
    assert dict(read_rollouts(whole)) == dict(read_rollouts(folder))


@pytest.mark.slow
def test_each_turn_of_an_episode_has_the_form(online: Callable[..., Any]) -> None:
    """A form may end a turn without the family's end token, which the next prompt then writes."""
    guesses = {"name": "guess_number", "low": 1, "high": 30}
    given = online(guided={"choice": ["7", "17", "27"]}, environment=guesses, rewards=["letters"], max_turns=3)
    rollouts = drawn(given)
    tokenizer: Any = AutoTokenizer.from_pretrained(given["model"])
    written = [
        tokenizer.decode(
            [token for token, own in zip(one.tokens, one.own, strict=True) if own], skip_special_tokens=True
        )
        for one in rollouts
        if one.own
    ]
    assert written and all(re.fullmatch("([12]?7){1,3}", text) for text in written)
    assert all(one.logprobs[place] == 0.0 or own for one in rollouts for place, own in enumerate(one.own))


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"guided": {"regex": "(?=a)b"}}, "guided.*look-around"),
        ({"guided": {"regex": "a", "choice": ["b"]}}, "guided.*give one of regex, json, choice and grammar"),
        ({"guided": {}}, "guided.*give one of"),
        ({"guided": {"pattern": "a"}}, "guided.pattern"),
        ({"guided": {"json": {"type": "array", "uniqueItems": True}}}, "guided.*uniqueItems"),
        ({"guided": {"regex": "a"}, "prefetch": 1, "partial_rollouts": 4}, "guided.*leave partial_rollouts out"),
        ({"vllm_guided_decoding_regex": "[0-9]+"}, r"write guided: \{regex: ...\}"),
        ({"guided_json": "{}"}, r"write guided: \{json: ...\}"),
    ],
)
def test_forms_that_cannot_be_held_are_refused(online: Callable[..., Any], method: dict[str, Any], why: str) -> None:
    with pytest.raises(FinetoothError, match=why) as refused:
        finetooth.run(online(**method))
    assert "\n" not in refused.value.problem
