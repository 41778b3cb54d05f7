"""What the methods on pairs make of rows, and how they drive the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError, Message, RecipeError
from finetooth_hooks.data.examples import Conversation, Image, Pair, Placed
from finetooth_hooks.engine import RoleModel
from finetooth_kit import ByteTokenizer, FakeEngine, PlainRenderer, parametrize_with_checks
from finetooth_preference.method import PairMethod

Contexts = Callable[..., Any]


@parametrize_with_checks("finetooth_preference.plugin", installed=True)
def test_conforms(check: Any) -> None:
    check()


def say(role: str, text: str, **more: Any) -> tuple[Message, ...]:
    return (Message(role, text, **more),)


def build(context: Any, **options: Any) -> PairMethod:
    method: PairMethod = context.build("method", {"name": "dpo", **options})
    return method


def prepared(context: Any, **options: Any) -> tuple[PairMethod, Any]:
    method = build(context, **options)
    return method, method.prepare()


def test_a_pair_is_two_data_with_one_prompt(make_context: Contexts, pairs: list[Pair]) -> None:
    context = make_context(pairs)
    method, report = prepared(context)
    chosen, rejected = method._pairs[3]
    assert (chosen.group, rejected.group, chosen.id) == ("train:3", "train:3", "train:3#chosen")
    assert (chosen.scalars["label"], rejected.scalars["label"]) == (1.0, 0.0)
    asked = PlainRenderer(context.tokenizer).prompt(say("user", "What is 3?"))
    for datum, text in ((chosen, "It is 3."), (rejected, "No")):
        tokens = [*datum.tokens, datum.targets[-1]]
        assert tuple(tokens[: len(asked)]) == asked
        spoken = [int(t) for t, counts in zip(datum.targets, datum.mask, strict=True) if counts]
        assert context.tokenizer.decode(spoken, skip_special=True) == text
    assert chosen.fields["weights"].sum() == chosen.mask.sum()
    assert not rejected.fields["weights"].any()
    assert (report.report.rows, report.report.used, report.steps_per_epoch) == (10, 10, 3)
    assert report.report.trained_tokens == sum(int(d.mask.sum()) for d in method._pairs.flat())


def test_only_the_answer_trains_in_several_turns(make_context: Contexts) -> None:
    prompt = (*say("user", "a"), *say("assistant", "b", train=True), *say("user", "c"))
    last = (*say("assistant", "good"), *say("user", "why"), *say("assistant", "so"))
    method, _ = prepared(make_context([Pair(prompt, last, say("assistant", "bad"))]))
    chosen, _ = method._pairs[0]
    tokenizer = make_context([]).tokenizer
    spoken = [int(t) for t, counts in zip(chosen.targets, chosen.mask, strict=True) if counts]
    assert tokenizer.decode(spoken, skip_special=True) == "goodso"


def test_plain_texts_are_pairs_too(make_context: Contexts) -> None:
    context = make_context([Pair("2+2=", "4", "5"), Pair("1+1=", "2", "3")])
    method, _ = prepared(context)
    chosen, _ = method._pairs[0]
    assert context.tokenizer.decode([int(t) for t in chosen.tokens], skip_special=True).endswith("2+2=4")
    assert int(chosen.mask.sum()) == 2  # the answer and the end of text


class TwoLetters(ByteTokenizer):
    """Reads two letters as one token."""

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        ranges = [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)]
        return [sum(map(ord, text[a:b])) % 200 + 50 for a, b in ranges], ranges


def test_a_prompt_that_shares_a_token_with_an_answer_is_refused(make_context: Contexts) -> None:
    context = make_context([Pair("ab", "cd", "ef"), Pair("abc", "de", "fg")])
    context.tokenizer = TwoLetters()
    with pytest.raises(DataError, match="train:1: the prompt and its rejected answer share a token"):
        prepared(context)


BAD = {
    "chosen and rejected are the same": Pair(say("user", "q"), say("assistant", "a"), say("assistant", "a")),
    "its rejected answer is empty": Pair(say("user", "q"), say("assistant", "a"), say("assistant", " \n")),
    "its chosen answer is empty": Pair(say("user", "q"), (), say("assistant", "a")),
    "it has no prompt": Pair((), say("assistant", "a"), say("assistant", "b")),
}


@pytest.mark.parametrize("reason", BAD)
def test_rows_that_teach_nothing_are_counted_or_refused(make_context: Contexts, pairs: list[Pair], reason: str) -> None:
    context = make_context([*pairs, BAD[reason]])
    _, report = prepared(context)
    assert (report.report.dropped, report.report.dropped_ids) == ({reason: 1}, {reason: ("train:10",)})
    assert report.report.used == 10
    with pytest.raises(DataError, match=rf"train:10: {reason} \(remove the row, or set method.bad_rows to drop"):
        prepared(context, bad_rows="raise")


IMAGE = Message("user", "q", media=(Placed(0, Image("i.png", content=b"x")),))
REFUSED = {
    "is a conversation": Conversation(say("user", "q")),
    "takes no images or sounds": Pair((IMAGE,), say("assistant", "a"), say("assistant", "b")),
    "its prompt ends with the assistant's": Pair(say("assistant", "q"), say("assistant", "a"), say("assistant", "b")),
    "its rejected answer does not begin with": Pair(say("user", "q"), say("assistant", "a"), say("user", "b")),
    "not both texts or both messages": Pair("q", say("assistant", "a"), "b"),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_rows_that_are_no_pairs_are_refused_by_name(make_context: Contexts, pairs: list[Pair], problem: str) -> None:
    with pytest.raises(DataError, match=f"train:10: .*{problem}"):
        prepared(make_context([*pairs, REFUSED[problem]]))


def test_a_prompt_that_is_rendered_otherwise_is_refused(make_context: Contexts, monkeypatch: Any) -> None:
    """As by a template that begins answers with an empty thought where it is asked, and not where it answers."""
    context = make_context([Pair(say("user", "q"), say("assistant", "a"), say("assistant", "b"))])
    plain = PlainRenderer.prompt

    def asked(self: Any, messages: Any, tools: Any = ()) -> tuple[int, ...]:
        return (*plain(self, messages, tools), *self._tokenizer.encode("<think>"))

    monkeypatch.setattr(PlainRenderer, "prompt", asked)
    with pytest.raises(DataError, match=r"train:0: .* does not begin with the prompt .* token .* is '<think>'"):
        prepared(context)


def test_margins_are_wanted_of_every_row(make_context: Contexts, pairs: list[Pair]) -> None:
    loss = {"name": "sigmoid", "margin_weight": 0.5}
    with pytest.raises(DataError, match=r"10 of 10 rows cannot be used: train:0, train:1, .*: it has no margin"):
        prepared(make_context(pairs), loss=loss)
    rows = [Pair(p.prompt, p.chosen, p.rejected, margin=float(i)) for i, p in enumerate(pairs)]
    method, _ = prepared(make_context(rows), loss=loss)
    assert [datum.scalars["margin"] for datum in method._pairs[4]] == [4.0, 4.0]


def test_a_batch_counts_pairs_and_keeps_them_together(make_context: Contexts, pairs: list[Pair]) -> None:
    context = make_context(pairs, batch_size=4, epochs=1)
    method, _ = prepared(context)
    engine = FakeEngine(context.tokenizer)
    reports = list(method.steps(engine))
    assert [report.rows for report in reports] == [4, 4, 2]
    assert [len(seen) for seen in engine.seen] == [8, 8, 4]
    for report in reports:
        assert {"rewards/chosen", "rewards/accuracies", "logps/rejected"} <= report.metrics.keys()


def test_a_restored_method_goes_on(make_context: Contexts, pairs: list[Pair]) -> None:
    context = make_context(pairs, batch_size=3, epochs=2)
    method, _ = prepared(context)
    engine = FakeEngine(context.tokenizer)
    steps = method.steps(engine)
    next(steps)
    state = json.loads(json.dumps(method.state()))
    rest = [next(steps) for _ in range(3)]
    second, _ = prepared(context)
    second.restore(state)
    other = FakeEngine(context.tokenizer)
    for _, _ in zip(rest, second.steps(other), strict=False):
        pass
    assert other.seen[:3] == engine.seen[1:4]


def test_several_losses_are_one_with_weights(make_context: Contexts, pairs: list[Pair]) -> None:
    context = make_context(pairs, batch_size=4, epochs=1)
    losses = [{"name": "sigmoid", "beta": 0.5}, {"name": "sft", "weight": 0.25}, {"name": "bco_pair", "weight": 2}]
    method, _ = prepared(context, losses=losses, beta=0.2)
    assert (method._loss.together, sorted(method._loss.needs)) == ("step", ["logprobs", "logprobs@reference"])
    engine = FakeEngine(context.tokenizer)
    report = next(method.steps(engine))
    parts = {name: report.metrics[f"loss/{name}"] for name in ("sigmoid", "sft", "bco_pair")}
    assert report.loss == pytest.approx(parts["sigmoid"] + 0.25 * parts["sft"] + 2 * parts["bco_pair"])
    data = [d for i in next(iter(method.begin_count(10))) for d in method._pairs[i]]
    sums = np.array([float(engine._score(d)[d.mask].sum()) for d in data[0::2]])
    assert parts["sft"] == pytest.approx(-sums.sum() / sum(d.mask.sum() for d in data[0::2]), rel=1e-6)
    assert engine.states[method._loss.name]["2/count"] == 8


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"loss": "ipo", "losses": ["sigmoid"]}, "method.losses: loss and losses are both given"),
        ({"losses": [{"name": "sft", "weight": 0}]}, "method.losses.0.weight: 0 is not a number above 0"),
        ({"reference": {"policy": "adapter-off", "sync_every": 5}}, "method.reference.sync_every: .*'adapter-off'"),
    ],
)
def test_options_that_contradict_each_other(make_context: Contexts, options: Any, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        build(make_context([]), **options)


@pytest.mark.parametrize(
    ("reference", "roles"),
    [
        ({}, {"reference": RoleModel(only_if_needed=True)}),
        ("adapter-off", {}),
        ("frozen-copy", {"reference": RoleModel()}),
        ("precomputed", {"reference": None}),
        ("smollm2-135m", {"reference": RoleModel("smollm2-135m")}),
        ({"sync_every": 10}, {"reference": RoleModel()}),
    ],
)
def test_roles_of_references(make_context: Contexts, reference: Any, roles: Any) -> None:
    assert build(make_context([]), reference=reference).roles == roles


def test_methods_without_a_reference_ask_for_none(make_context: Contexts, pairs: list[Pair]) -> None:
    for name in ("orpo", "simpo", "cpo"):
        method = make_context(pairs).build("method", name)
        assert method.roles == {}
        assert method._loss.roles == frozenset()
    assert build(make_context([]), loss="sft").roles == {}


class Following(FakeEngine):
    """Remembers when its reference moved."""

    @property
    def capabilities(self) -> frozenset[str]:
        return super().capabilities | {"roles"}

    def move_role(self, role: str, mix: float) -> None:
        self.calls.append(f"{role} {mix} after {self.weights_version}")


def test_the_reference_follows_every_few_steps(make_context: Contexts, pairs: list[Pair]) -> None:
    context = make_context(pairs, batch_size=2, epochs=1)
    method, _ = prepared(context, reference={"policy": "frozen-copy", "sync_every": 2, "mix": 0.3})
    engine = Following(context.tokenizer)
    assert len(list(method.steps(engine))) == 5
    assert [c for c in engine.calls if c.startswith("reference")] == ["reference 0.3 after 2", "reference 0.3 after 4"]
