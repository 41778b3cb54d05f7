"""Exact match: what is asked, what is compared, and the majority answer."""

from __future__ import annotations

import math

import pytest
from finetooth_exactmatch import answers
from finetooth_exactmatch import evaluator as evaluators
from finetooth_exactmatch import reward as rewards
from finetooth_exactmatch.evaluator import ExactMatchOptions
from finetooth_hooks import Completion, Conversation, DataError, Message, PromptCompletion, RecipeError
from finetooth_hooks.data.examples import Task, Text
from pydantic import ValidationError

BOS, OPEN, CLOSE = 0, 2, 3


def ids(text):
    return tuple(ord(c) + 4 for c in text)


class Engine:
    """Answers from a table by prompt; notes what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def generate(self, prompts, sampling):
        self.asked.append((list(prompts), sampling))
        return [[self.say(tuple(prompt), sampling)] for prompt in prompts]

    def say(self, prompt, sampling):
        text = self.answers[prompt]
        cut = len(text) >= sampling.max_tokens
        tokens = ids(text)[: sampling.max_tokens] if cut else (*ids(text), CLOSE)
        return Completion(tokens, (0.0,) * len(tokens), text[: sampling.max_tokens], "length" if cut else "stop", 0)


def chat(question):
    """Tokens of a one-turn prompt."""
    return (OPEN, *ids(question), CLOSE, OPEN)


def run(context, answers, step=0, **options):
    made = evaluators.ExactMatchEvaluator(ExactMatchOptions(**options), context)
    report = made.prepare()
    engine = Engine(answers)
    return made.evaluate(engine, step), report, engine


ROWS = (("a?", "yes"), ("b?", "no"), ("c?", "Yes."), ("d?", "maybe"))


def test_score_baseline_and_samples(make_context):
    said = {chat("a?"): " YES ", chat("b?"): "yes", chat("c?"): "yes", chat("d?"): "no"}
    evaluation, report, engine = run(make_context(*ROWS), said, step=7, samples=2)
    assert evaluation.metrics == {"exact_match": 0.5, "unfinished": 0.0}
    assert evaluation.baselines == {"majority answer": 0.5}
    assert (evaluation.name, evaluation.step, evaluation.rows) == ("exact_match", 7, 4)
    assert evaluation.higher_is_better
    assert [(s.id, s.prompt, s.expected, s.answer, s.score) for s in evaluation.samples] == [
        ("eval:0", "a?", "yes", " YES ", 1.0),
        ("eval:2", "c?", "Yes.", "yes", 1.0),
    ]
    assert (report.split, report.rows, report.used, report.dropped) == ("eval", 4, 4, {})
    [(prompts, sampling)] = engine.asked
    assert (len(prompts), sampling.temperature, sampling.n, sampling.stop_ids) == (4, 0.0, 1, None)


def test_everything_before_the_last_answer_is_asked(make_context):
    turns = [("system", "s"), ("user", "q"), ("assistant", "w"), ("user", "r"), ("assistant", "x")]
    row = Conversation(tuple(Message(*turn) for turn in turns))
    prompt = (OPEN, *ids("s"), CLOSE, OPEN, *ids("q"), CLOSE, OPEN, *ids("w"), CLOSE, OPEN, *ids("r"), CLOSE, OPEN)
    evaluation, _, _ = run(make_context(row), {prompt: "x"})
    assert evaluation.metrics["exact_match"] == 1
    assert evaluation.samples[0].prompt == "r"


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_raw_prompt_is_asked_as_it_stands(make_context, adds_bos):
    prompt = (*((BOS,) if adds_bos else ()), *ids("2+2="))
    context = make_context(PromptCompletion("2+2=", " 4"), adds_bos=adds_bos)
    assert run(context, {prompt: "4"})[0].metrics["exact_match"] == 1


def test_the_majority_is_the_most_frequent_answer_not_the_first(make_context):
    rows = [("a", "no"), ("b", "Yes"), ("c", "yes."), ("d", "maybe")]
    evaluation, _, _ = run(make_context(*rows), {chat(q): "no" for q, _ in rows})
    assert evaluation.baselines == {"majority answer": 0.5}
    assert evaluation.metrics["exact_match"] == 0.25


def test_an_answer_cut_off_counts_as_unfinished(make_context):
    said = {chat("a?"): "yes and more", chat("b?"): "no"}
    evaluation, _, _ = run(make_context(*ROWS[:2]), said, max_tokens=3)
    assert evaluation.metrics == {"exact_match": 1.0, "unfinished": 0.5}


def test_pattern_reads_both_sides_at_its_last_match(make_context):
    rows = [("p", "2+2 #### 4"), ("q", "so #### 1,000"), ("r", "#### 4"), ("s", "no marks")]
    said = {chat("p"): "#### 5 no, #### 4", chat("q"): "1,000", chat("r"): "#### 3"}
    evaluation, report, _ = run(make_context(*rows), said, pattern=r"#### (\S+)")
    assert evaluation.metrics["exact_match"] == pytest.approx(1 / 3)
    assert evaluation.baselines["majority answer"] == pytest.approx(2 / 3)
    assert report.dropped == {"expected answer has no match of pattern": 1}
    assert report.dropped_ids == {"expected answer has no match of pattern": ("eval:3",)}


def test_rows_that_ask_nothing_are_counted(make_context):
    unanswered = Conversation((Message("user", "u"),))
    empty = Conversation((Message("user", "u"), Message("assistant", " ")))
    too_long = ("x" * 68, "x")  # with its three marks it fits 80 positions, but not with ten tokens more
    context = make_context(ROWS[0], "a text", unanswered, empty, too_long, max_positions=80)
    _, report, _ = run(context, {chat("a?"): "yes"}, max_tokens=10)
    assert report.dropped == {
        "a plain text asks nothing": 1,
        "does not end with an assistant's message": 2,
        "question and max_tokens exceed the model's positions": 1,
    }
    assert (report.rows, report.used) == (5, 1)
    with pytest.raises(DataError, match=r"can use no row: 1 a plain text .*evaluate\.evaluators"):
        run(make_context("only text"), {})
    with pytest.raises(RecipeError, match=r"data\.eval"):
        run(make_context(), {})


def test_rows_bounds_the_questions_and_says_so(make_context):
    evaluation, report, _ = run(make_context(*ROWS), {chat("a?"): "x", chat("b?"): "no"}, rows=2)
    assert (evaluation.rows, report.rows) == (2, 2)
    assert report.notes == ("evaluator exact_match asks the first 2 rows",)


def test_samples_are_the_same_rows_each_time_and_spread(make_context):
    rows = [(f"q{i}", "a") for i in range(10)]
    said = {chat(f"q{i}"): "a" for i in range(10)}
    made = evaluators.ExactMatchEvaluator(ExactMatchOptions(samples=3), make_context(*rows))
    made.prepare()
    picked = [[s.id for s in made.evaluate(Engine(said), step).samples] for step in (0, 1)]
    assert picked == [["eval:0", "eval:3", "eval:6"]] * 2
    few, _, _ = run(make_context(*rows[:2]), said, samples=5)
    assert len(few.samples) == 2
    none, _, _ = run(make_context(*rows[:2]), said, samples=0)
    assert none.samples == ()


def test_another_reward_judges(make_context):
    seen = []

    def length(prompts, completions, columns):
        seen.append((list(prompts), dict(columns)))
        return [
            None if expected == "no" else len(said) / 10
            for said, expected in zip(completions, columns["answer"], strict=True)
        ]

    context = make_context(*ROWS, rewards={"reward:length": length})
    said = {chat("a?"): "12345", chat("b?"): "x", chat("c?"): "1", chat("d?"): ""}
    evaluation, _, _ = run(context, said, reward={"name": "length"})
    assert evaluation.metrics == {"length": pytest.approx(0.2), "unfinished": 0.0}
    assert evaluation.rows == 3  # one was left out
    assert evaluation.baselines["majority answer"] == pytest.approx(0.3)  # "yes" is most frequent
    assert seen[-1] == (["a?", "b?", "c?", "d?"], {"answer": ["yes", "no", "Yes.", "maybe"]})
    with pytest.raises(RecipeError, match="pattern and another reward"):
        evaluators.ExactMatchEvaluator(ExactMatchOptions(reward="length", pattern="x"), context)
    context.rewards["reward:length"] = lambda prompts, completions, columns: [None] * len(completions)
    with pytest.raises(DataError, match="scores no row"):
        run(context, said, reward="length")


TASKS = (
    Task((Message("user", "2+2?"),), {"answer": 4, "level": "easy"}),
    Task((Message("system", "s"), Message("user", "3+4?")), {"answer": "7", "hint": "odd"}),
    Task("1+1=", {"answer": "2"}),
)
SAID = {chat("2+2?"): "4", (OPEN, *ids("s"), CLOSE, *chat("3+4?")): "8", ids("1+1="): " 2"}


def test_prompts_without_an_answer_are_judged_by_their_columns(make_context):
    evaluation, report, _ = run(make_context(*TASKS), SAID)
    assert evaluation.metrics == {"exact_match": pytest.approx(2 / 3), "unfinished": 0.0}
    assert evaluation.baselines == {"majority answer": pytest.approx(1 / 3)}
    assert (report.used, report.dropped) == (3, {})
    assert [(s.prompt, s.expected, s.answer, s.score) for s in evaluation.samples] == [
        ("2+2?", "4", "4", 1.0), ("3+4?", "7", "8", 0.0), ("1+1=", "2", " 2", 1.0),
    ]  # fmt: skip


def test_a_reward_gets_every_column_of_them(make_context):
    seen = []

    def judge(prompts, completions, columns):
        seen.append(columns)
        return [float(level == "easy") for level in columns["level"]]

    evaluation, _, _ = run(make_context(*TASKS, rewards={"reward:judge": judge}), SAID, reward="judge")
    assert evaluation.metrics["judge"] == pytest.approx(1 / 3)
    assert seen[-1] == {"answer": [4, "7", "2"], "level": ["easy", None, None], "hint": [None, "odd", None]}


def test_no_expected_answer_is_no_fault_for_a_reward_and_counted_otherwise(make_context):
    bare = Task((Message("user", "Say something."),))
    other = Task((Message("user", "2+2?"),), {"solution": "4"})
    said = {chat("Say something."): "hi", chat("2+2?"): "4"}
    judge = {"reward:judge": lambda prompts, completions, columns: [1.0] * len(completions)}
    evaluation, _, _ = run(make_context(bare, rewards=judge), said, reward="judge")
    assert (evaluation.metrics["judge"], evaluation.baselines) == (1.0, {})
    evaluation, report, _ = run(make_context(bare, other), said, column="solution")
    assert evaluation.metrics["exact_match"] == 1.0
    reason = "has no expected answer in the column that exact_match reads"
    assert (report.dropped, report.settings) == ({reason: 1}, {reason: "column of exact_match"})


def test_a_question_the_renderer_refuses_is_named(make_context):
    row = Conversation((Message("tool", "x"), Message("assistant", "y")))
    with pytest.raises(DataError, match=r"eval:1: .*'tool'"):
        run(make_context(ROWS[0], row), {})


def test_options_out_of_range_are_refused():
    for options in ({"max_tokens": 0}, {"samples": -1}, {"rows": 0}, {"pattern": "("}):
        with pytest.raises(ValidationError):
            ExactMatchOptions(**options)


SAME = [
    ("brother", " Brother. "),
    ("mother-in-law", "Mother-in-Law"),
    ("New  York\n", "new york"),
    ("ﬁve", "five"),
    ("“yes”", '"Yes!"'),
    ("(a, b)", "a b"),
    ("ΣΊΣΥΦΟΣ", "σίσυφος"),
]
DIFFERENT = [
    ("-5", "5"),
    ("5%", "5"),
    ("$5", "5"),
    ("3.14", "314"),
    ("a-b", "ab"),
    ("yes", "yes no"),
    ("<", ">"),
    ("C++", "C"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_is_the_same(one, other):
    assert rewards.build(rewards.RewardOptions()).score(one, other) == 1


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_is_different(one, other):
    assert rewards.build(rewards.RewardOptions()).score(one, other) == 0


def test_normalisation_can_be_turned_off():
    strict = rewards.build(rewards.RewardOptions(ignore_case=False, ignore_punctuation=False))
    assert [strict.score("Yes", "yes"), strict.score("yes.", "yes"), strict.score(" yes ", "yes")] == [0, 0, 1]


def test_reward_scores_by_column_and_leaves_rows_out():
    reward = rewards.build(rewards.RewardOptions(pattern=r"=\s*(\d+)", column="solution"))
    columns = {"solution": ["= 4", None, "four", "=5"], "answer": ["x"] * 4}
    assert reward(["q"] * 4, ["2 = 2, = 4", "= 1", "= 4", "5"], columns) == [1.0, None, None, 0.0]
    with pytest.raises(DataError, match=r"no column 'solution'; there are: answer"):
        reward(["q"], ["a"], {"answer": ["a"]})


def test_answers_are_kept_beside_what_was_expected_without_a_score(make_context):
    evaluator = answers.Answers(answers.AnswersOptions(rows=2, max_tokens=4), make_context(*ROWS))
    assert evaluator.prepare().used == 2
    evaluation = evaluator.evaluate(Engine({chat("a?"): "yes", chat("b?"): "never ever"}), 3)
    assert [(s.id, s.prompt, s.expected, s.answer) for s in evaluation.samples] == [
        ("eval:0", "a?", "yes", "yes"), ("eval:1", "b?", "no", "neve"),
    ]  # fmt: skip
    assert all(math.isnan(sample.score) for sample in evaluation.samples)
    assert (evaluation.name, evaluation.metrics, evaluation.rows) == ("some_answers", {"unfinished": 0.5}, 2)


def test_rows_that_ask_nothing_name_the_evaluator(make_context):
    evaluator = answers.Answers(answers.AnswersOptions(), make_context(Text("plain")))
    with pytest.raises(DataError, match="evaluator some_answers can use no row: 1 a plain text asks nothing"):
        evaluator.prepare()
