"""A whole run as a fixture: what a plugin's own tests train with."""

from __future__ import annotations

import pytest
from finetooth_hooks import UserError
from finetooth_kit.tiny_runs import TinyRuns, tiny_model_folder, tiny_run

__all__ = ["tiny_model_folder", "tiny_run"]


def test_it_trains_three_steps_of_what_a_test_changes(tiny_run: TinyRuns) -> None:
    done = tiny_run({"optimizer": {"name": "sgd", "learning_rate": 0.5}, "train": {"max_steps": 2}})
    assert done.outcome.status == "done" and len(done.losses) == 2
    assert 4 < done.losses[0] < 8  # ln 260, of a model that knows nothing, is 5.6
    assert (done.folder / "artifact").is_dir()
    with pytest.raises(UserError, match="no optimizer 'mine'"):
        tiny_run({"optimizer": "mine"})
