"""No evaluation of a step takes the place of another's metrics."""

from __future__ import annotations

from finetooth_hooks.reports import Evaluation
from finetooth_saving.metric_names import all_distinct, distinct_names


def test_names_are_numbered_in_order() -> None:
    made = all_distinct(Evaluation("loss", 3, {"loss": value, "tokens": 1.0}, {}) for value in (1.0, 2.0, 3.0))
    assert [evaluation.name for evaluation in made] == ["loss", "loss_2", "loss_3"]
    assert made[1].metrics == {"loss_2": 2.0, "tokens_2": 1.0} and made[2].metrics["loss_3"] == 3.0


def test_only_the_metrics_that_two_share_are_numbered() -> None:
    first, second = (
        Evaluation("exact_match", 3, {"a": 1.0, "unfinished": 0.0}, {}),
        Evaluation("exact_match", 3, {"b": 2.0, "unfinished": 0.5}, {}),
    )
    assert distinct_names(second, [first]).metrics == {"b": 2.0, "unfinished_2": 0.5}
    earlier = Evaluation("exact_match", 2, {"b": 0.0, "unfinished": 0.0}, {})
    assert distinct_names(second, [earlier]) == second
