"""Turns, medians, ratios and differences: against values worked out by hand."""

from __future__ import annotations

import pytest
from harness import compare, figures, goals, results
from harness.turns import turns
from harness.workloads import WORKLOADS, Contender, Workload, pick


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


def test_a_failed_run_counts_nowhere():
    runs = [run("a", 0, failed="out of memory"), run("a", 1, s=2.0), run("b", 0, s=1.0), run("b", 1, s=1.0)]
    assert figures.ratios(runs, "a", "b", "s") == [2.0]
    assert figures.failures(runs) == {}
    assert figures.failures(runs[:1]) == {"a": "out of memory"}


def test_losses_are_compared_step_by_step():
    runs = [run("a", 0, losses=[1.0, 2.0, 3.0]), run("b", 0, losses=[1.5, 1.5, 3.0])]
    found = figures.losses(runs, "a", "b")
    assert found is not None
    assert found.differences == (-0.5, 0.5, 0.0)
    assert (found.largest, found.mean, found.mean_signed) == (0.5, pytest.approx(1 / 3), 0.0)


def test_losses_of_different_lengths_are_not_compared():
    assert figures.losses([run("a", 0, losses=[1.0]), run("b", 0, losses=[1.0, 2.0])], "a", "b") is None


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
    config = dict.fromkeys(
        ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"), 1
    )
    runs = [run("finetooth bf16", 0, tokens_per_second=ratio), run("TRL defaults", 0, tokens_per_second=1.0)]
    table = goals.table({"lora": {"runs": runs, "config": {**config, "vocab_size": 1}}})
    speed = next(goal for goal in table if goal.workload == "(a) tokens/s")
    assert speed.met is met
    assert speed.reached == f"{ratio:.2f}x"
    unmeasured = next(goal for goal in table if goal.workload == "(b) tokens/s")
    assert unmeasured.met is None


def test_scores_are_compared_to_transformers_in_fp32():
    runs = [
        run("finetooth bf16", 0, answers=[[-1.0, -2.0], [-3.0]]),
        run("transformers default (fp32)", 0, answers=[[-1.0, -2.5], [-3.25]]),
    ]
    assert compare.scores(runs) == {"finetooth bf16": {"largest": 0.5, "mean": 0.25}}


def test_other_rows_are_noticed():
    runs = [run("finetooth bf16", 0, rows_digest="x"), run("TRL", 0, rows_digest="x"), run("odd", 0, rows_digest="y")]
    assert compare.same_rows(runs) == {"finetooth bf16": True, "TRL": True, "odd": False}


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
    with pytest.raises(ValueError, match="no workload 'q'; there are a"):
        pick("q")


def test_names_are_unique():
    for one in WORKLOADS:
        names = [contender.name for contender in one.contenders]
        assert len(names) == len(set(names))
