"""Turns, medians, ratios and differences: against values worked out by hand."""

from __future__ import annotations

import pytest
from harness import compare, figures, goals, results
from harness.turns import turns
from harness.workload import Contender, Workload
from harness.workloads import WORKLOADS, pick

CONFIG = dict.fromkeys(
    (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
    ),
    1,
)


def workload(*contenders: Contender) -> Workload:
    return Workload("z", "zoo", "", "", {"quick": {}, "full": {}, "smoke": {}}, contenders)


def run(contender: str, index: int, **more: object) -> dict[str, object]:
    return {"contender": contender, "round": index, **more}


def test_contenders_take_turns():
    order = list(
        turns(workload(Contender("a", ""), Contender("b", ""), Contender("c", "", rounds={"full": 1})), "full")
    )
    assert [(i, c.name) for i, c in order] == [(0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_rounds_are_bounded_and_forms_leave_out():
    both = workload(Contender("a", ""), Contender("b", "", forms=("full",)))
    assert [(i, c.name) for i, c in turns(both, "quick")] == [(0, "a"), (1, "a")]
    assert [(i, c.name) for i, c in turns(both, "full", 1)] == [(0, "a"), (0, "b")]


def test_a_ratio_is_taken_within_a_round():
    # the second round ran on a machine half as fast: the ratio of medians would be 4 / 2.5, the pairs say 2 and 1.5
    runs = [run("a", 0, s=6.0), run("b", 0, s=3.0), run("a", 1, s=3.0), run("b", 1, s=2.0), run("a", 2, s=9.0)]
    assert figures.ratios(runs, "a", "b", "s") == [2.0, 1.5]
    assert figures.median(runs, "a", "s") == 6.0


def test_a_ratio_is_taken_within_an_invocation():
    # both rounds of b are from another hour than a's second
    morning, evening = {"invocation": "2026-01-02T08:00:00Z"}, {"invocation": "2026-01-02T20:00:00Z"}
    runs = [run("a", 0, s=6.0, **morning), run("b", 0, s=3.0, **morning), run("b", 1, s=2.0, **morning)]
    assert figures.ratios([*runs, run("a", 1, s=9.0, **evening)], "a", "b", "s") == [2.0]
    assert figures.ratios([*runs, run("a", 1, s=9.0)], "a", "b", "s") == [2.0]


def test_a_difference_is_taken_step_by_step():
    """1 and 3 apart: 2 on average, with a standard deviation of the square root of 2."""
    runs = [run("a", 0, r=[2.0, 5.0]), run("b", 0, r=[1.0, 2.0]), run("c", 0, r=[1.0])]
    found = figures.difference(runs, "a", "b", "r")
    assert (found.mean, found.count) == (2.0, 2)
    assert (found.low, found.high) == pytest.approx((2 - 1.96, 2 + 1.96))
    assert figures.difference(runs, "a", "c", "r") is None  # steps of other numbers
    assert figures.difference(runs, "a", "d", "r") is None


def test_a_share_is_that_of_the_rate_of_its_round():
    shape = figures.Shape.of(CONFIG)
    work = {"positions": 0, "head_positions": 1, "pairs": 0.0, "rank": 0, "passes": "forward", "precision": "bf16"}
    rates = {0: 8.0, 1: 2.0}
    machine = [run("machine", index, gemm={"bf16": rate}, invocation="x") for index, rate in rates.items()]
    # two FLOPs: in one second beside a rate of 8, in two seconds beside one of 2, in one beside none: the median, 5
    runs = [run("a", index, train_s=took, invocation="x", **work) for index, took in ((0, 1.0), (1, 2.0), (2, 1.0))]
    assert figures.share([*machine, *runs[:1]], "a", shape) == 0.25
    assert figures.share([*machine, runs[1]], "a", shape) == 0.5
    assert figures.share([*machine, runs[2]], "a", shape) == 0.4
    assert figures.share([*machine, {**runs[0], "invocation": "y"}], "a", shape) is None


def test_a_failed_run_counts_nowhere():
    runs = [run("a", 0, failed="out of memory"), run("a", 1, s=2.0), run("b", 0, s=1.0), run("b", 1, s=1.0)]
    assert figures.ratios(runs, "a", "b", "s") == [2.0]
    assert figures.failures(runs) == {}
    assert figures.failures(runs[:1]) == {"a": "out of memory"}


def test_losses_are_compared_step_by_step():
    (found,) = figures.losses([run("a", 0, losses=[1.0, 2.0, 3.0]), run("b", 0, losses=[1.5, 1.5, 3.0])], "a", "b")
    assert found.differences == (-0.5, 0.5, 0.0)
    assert (found.largest, found.mean) == (0.5, pytest.approx(1 / 3))


@pytest.mark.parametrize("differs", [{"losses": [1.0, 2.0]}, {"losses": [1.0], "rows_digest": "other"}])
def test_other_steps_or_rows_cannot_be_compared(differs):
    same = [run("a", 0, losses=[1.0], rows_digest="one"), run("b", 0, losses=[1.0], rows_digest="one")]
    runs = [*same, run("a", 1, losses=[1.0], rows_digest="one"), run("b", 1, **differs)]
    assert figures.comparable(same, "a", "b") and figures.losses(same, "a", "b")
    assert not figures.comparable(runs, "a", "b")  # one such round is enough
    assert figures.losses(runs, "a", "b") == []


def test_one_that_does_not_tell_its_rows_is_compared():
    assert figures.comparable([run("a", 0, rows_digest="one"), run("b", 0)], "a", "b")


def loss_goal(ours, theirs, **differs):
    """The goal on losses in bf16, from the losses of each round."""
    runs = [run("finetooth bf16", i, losses=one, rows_digest="x") for i, one in enumerate(ours)]
    runs += [run("TRL defaults", i, losses=one, rows_digest="x", **differs) for i, one in enumerate(theirs)]
    table = goals.table({"lora": {"runs": runs, "config": CONFIG}})
    return next(goal for goal in table if goal.workload == "(a) losses in bf16, beside TRL's")


def test_the_goal_on_losses_takes_the_mean_of_absolute_differences():
    # differences of +4e-3 and -4e-3 cancel, and each is within the bound of a step; their absolute mean is not
    goal = loss_goal([[1.004, 1.0]], [[1.0, 1.004]])
    assert goal.met is False and goal.reached == "4.0e-03 at most, 4.0e-03 on average"
    assert loss_goal([[1.0005, 1.0]], [[1.0, 1.0005]]).met is True


def test_the_goal_on_losses_takes_the_worst_round():
    goal = loss_goal([[1.0, 1.0], [1.0, 1.006]], [[1.0, 1.0], [1.0, 1.0]])
    assert goal.met is False and goal.reached == "6.0e-03 at most, 3.0e-03 on average"


def test_goals_on_contenders_with_other_rows_are_not_judged():
    mine = run("finetooth bf16", 0, tokens_per_second=9.0, losses=[1.0], rows_digest="x")
    other = run("TRL defaults", 0, tokens_per_second=1.0, losses=[1.0], rows_digest="y")
    table = goals.table({"lora": {"runs": [mine, other], "config": CONFIG}})
    judged = {goal.workload: goal for goal in table}
    for name in ("(a) tokens/s", "(a) losses in bf16, beside TRL's"):
        assert (judged[name].reached, judged[name].met) == (goals.NOT_COMPARABLE, None)


def test_a_share_is_of_the_rate_in_the_own_precision():
    shape = figures.Shape(1, 1, 1, 1, 1, 1)
    runs = [
        run("machine", 0, gemm={"bf16": 100.0, "fp32": 10.0}),
        run("a", 0, precision="bf16", flops=60.0, train_s=2.0),
        run("b", 0, precision="fp32", flops=16.0, train_s=2.0),
    ]
    assert figures.share(runs, "a", shape) == pytest.approx(0.3)
    assert figures.share(runs, "b", shape) == pytest.approx(0.8)


@pytest.mark.parametrize(("ratio", "met"), [(5.2, True), (4.9, False)])
def test_a_goal_is_judged_by_the_median_ratio(ratio, met):
    runs = [run("finetooth bf16", 0, tokens_per_second=ratio), run("TRL defaults", 0, tokens_per_second=1.0)]
    table = goals.table({"lora": {"runs": runs, "config": CONFIG}})
    speed = next(goal for goal in table if goal.workload == "(a) tokens/s")
    assert speed.met is met
    assert speed.reached == f"{ratio:.2f}x"
    unmeasured = next(goal for goal in table if goal.workload == "(b) tokens/s")
    assert unmeasured.met is None


@pytest.mark.parametrize(("memory", "met"), [(90, True), (110, False)])
def test_a_kernel_is_held_against_the_better_of_two(memory, met):
    rows = [("triton", 2.0, 4.0, memory), ("cut-cross-entropy", 3.0, 5.0, 200), ("liger-kernel", 9.0, 9.0, 100)]
    names = ("kernel", "forward_ms", "backward_ms", "memory_bytes")
    shape = goals.KERNEL_SHAPES[1]
    file = {"rows": [{"shape": shape, **dict(zip(names, row, strict=True))} for row in rows]}
    goal = next(g for g in goals.table({"kernels": file}) if shape in g.workload)
    assert (goal.reached, goal.met) == (f"0.75x the time, {memory / 100:.2f}x the memory", met)


def test_scores_are_compared_to_transformers_in_fp32():
    runs = [
        run("finetooth bf16", 0, answers=[[-1.0, -2.0], [-3.0]]),
        run("transformers default (fp32)", 0, answers=[[-1.0, -2.5], [-3.25]]),
    ]
    assert compare.scores(runs) == {"finetooth bf16": {"largest": 0.5, "mean": 0.25}}


def test_other_rows_are_noticed():
    runs = [run("finetooth bf16", 0, rows_digest="x"), run("TRL", 0, rows_digest="x"), run("odd", 0, rows_digest="y")]
    assert compare.same_rows(runs) == {"finetooth bf16": True, "TRL": True, "odd": False}


def test_rows_that_change_between_rounds_are_noticed():
    runs = [run("finetooth bf16", i, rows_digest="x") for i in range(2)]
    runs += [run("TRL", 0, rows_digest="x"), run("TRL", 1, rows_digest="y")]
    assert compare.same_rows(runs) == {"finetooth bf16": True, "TRL": False}


def test_a_forward_has_the_flops_of_a_forward():
    work = {"positions": 3, "head_positions": 2, "pairs": 9.0, "rank": 0}
    shape = figures.Shape.of(CONFIG)
    # one layer of width 1: 4 attention weights and 3 of the feed-forward, a head of 1, scores and values of 9 pairs
    assert figures.executed(run("a", 0, passes="forward", **work), shape) == 2 * 7 * 3 + 2 * 2 + 4 * 9
    assert figures.executed(run("a", 0, **work), shape) == 3 * (2 * 7 * 3 + 2 * 2 + 4 * 9)


def test_a_part_of_a_workload_keeps_the_others_runs():
    old = {
        "form": "quick",
        "comparisons": {"same_rows": {"b": True}},
        "runs": [run("a", 0, s=1), run("b", 0, s=1), run("gone", 0)],
    }
    new = {"form": "quick", "comparisons": {"same_rows": {"a": True}}, "runs": [run("a", 0, s=2)]}
    found = results.merged(old, new, ["a"], ["a", "b"])
    assert found["runs"] == [run("b", 0, s=1), run("a", 0, s=2)]
    assert found["comparisons"] == {"same_rows": {"b": True, "a": True}}
    assert results.merged(old, {**new, "form": "full"}, ["a"], ["a", "b"])["runs"] == new["runs"]


def test_every_workload_can_be_picked():
    assert pick("") == WORKLOADS
    assert [w.name for w in pick("d,lora")] == ["lora", "scoring"]
    with pytest.raises(ValueError, match="no workload 'x'; there are a"):
        pick("x")


def test_names_are_unique():
    for one in WORKLOADS:
        names = [contender.name for contender in one.contenders]
        assert len(names) == len(set(names))
