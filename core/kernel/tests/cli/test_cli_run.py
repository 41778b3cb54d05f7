"""`ft run` and `ft check` over a toy stack, from the arguments to the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.settings.run_recipe import recipe_of
from finetooth_hooks import PlanError

EXPECTED_RESULT = "toy_score 0.0 % 100.0 % +100.0 points 4 majority answer 12.5 %"


def test_a_run(ft: Any, folder: Path) -> None:
    answer = ft("run", "recipe.yaml", "-v")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    decided = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines if line.startswith("  ")}
    assert decided["train.precision"] == ["fp32", "toys are exact"]
    assert decided["hardware"][0].endswith(":toy")
    assert "4 optimizer steps" in answer.out
    assert decided["total"] == ["1.50", "GB of 10.00 GB"]
    assert decided["train"][:1] == ["4"]  # rows
    result = next(line for line in lines if "toy_score" in line and "majority" in line)
    assert result.split() == EXPECTED_RESULT.split()
    assert answer.out.count("  question  ") == 3
    assert "before    answer0 at 0" in answer.out
    assert "after     answer0 at 4" in answer.out
    assert "expected  right0" in answer.out
    assert "run folder  runs/mine" in answer.out
    assert "ft chat runs/mine" in answer.out
    assert "done after 4 steps" in answer.out
    written = json.loads((folder / "runs/mine/result.json").read_text())
    assert (written["status"], written["exit_code"], written["steps"]) == ("done", 0, 4)
    assert (folder / "runs/mine/artifact").is_dir()


def test_overrides_and_output(ft: Any, folder: Path) -> None:
    answer = ft("run", "recipe.yaml", "train.max_steps=1", "optimizer.strength=2", "--output", "runs/2024")
    assert answer.code == 0, answer.err
    assert json.loads((folder / "runs/2024/result.json").read_text())["steps"] == 1
    plan = json.loads((folder / "runs/2024/plan.json").read_text())
    assert plan["options"]["optimizer"]["strength"] == 2.0
    assert ft("run", "recipe.yaml", "--output", "1").code == 0  # a text, not the number 1
    assert (folder / "1" / "result.json").exists()


def test_a_run_without_a_recipe_is_what_its_options_say(ft: Any, folder: Path) -> None:
    """The same plan as the recipe's, and the recipe it leaves trains the same again."""
    rest = [
        "model.loader=toy",
        "adapter=toy",
        "optimizer=toy",
        "schedule=toy",
        "backend=toy",
        "hardware=toy",
        "train.epochs=2",
    ]
    rest += ["train.batch_size=2", "evaluate.evaluators=[toy_score]", "trackers=[]", "plugins=[./toy_plugin.py]"]
    named = ["--model", "toy", "--data", "train.toy", "--eval", "train.toy", "--method", "toy_sft"]
    assert ft("run", "recipe.yaml").code == 0
    answer = ft("run", *rest, *named, "--output", "runs/flags")
    assert answer.code == 0, answer.err
    assert f"note: no recipe was named; {Path('runs/flags/recipe.yaml')} will hold the one of this run" in answer.err
    again = ft("run", "runs/flags/recipe.yaml", "--output", "runs/again")
    assert again.code == 0, again.err
    plans = [json.loads((folder / "runs" / name / "plan.json").read_text()) for name in ("mine", "flags", "again")]
    assert plans[0]["options"] == plans[1]["options"] == plans[2]["options"]


def test_options_change_a_recipe_and_later_settings_win(ft: Any, folder: Path) -> None:
    (folder / "other.toy").write_text("a\tb\n" * 2)
    answer = ft("check", "recipe.yaml", "--data", "other.toy", "-q")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("2 of 2 rows")
    assert ft("check", "recipe.yaml", "--data", "other.toy", "data.train=train.toy", "-q").out.startswith("4 of 4 rows")
    assert "gone.toy" in ft("check", "recipe.yaml", "--data", "gone.toy").err


def test_a_plugin_ends_a_run_with_its_own_exit_code(ft: Any, folder: Path) -> None:
    answer = ft("run", "recipe.yaml", "plugins.0.options.stop_at=2")
    assert answer.code == 7
    assert ": the toy has had enough\n" in answer.out
    assert json.loads((folder / "runs/mine/result.json").read_text())["exit_code"] == 7


def test_missing_options_of_a_named_plugin_stop_a_check_too(ft: Any, folder: Path) -> None:
    (folder / "gate.py").write_text(
        "from finetooth_hooks import Options, hookimpl\n\nclass GateOptions(Options):\n    min_score: float\n\n"
        "plugin_options = GateOptions\n\n@hookimpl\ndef ft_run_end(run, outcome):\n    pass\n"
    )
    answer = ft("check", "recipe.yaml", "--plugins", "gate.py")
    assert answer.code == 2
    assert "min_score" in answer.err and "gate.py" in answer.err


def test_two_runs_without_an_output_get_folders_of_their_own(ft: Any, folder: Path) -> None:
    for _ in range(2):
        assert ft("run", "recipe.yaml", "output=null").code == 0
    assert len(list((folder / "runs").iterdir())) == 2


def test_ctrl_c_keeps_what_was_trained(ft: Any, folder: Path) -> None:
    answer = ft("run", "recipe.yaml", "plugins.0.options.interrupt_at=2")
    assert answer.code == 130
    assert "the trained weights are in runs/mine/artifact" in answer.err
    assert "interrupted after 2 steps in" in answer.out
    assert "Traceback" not in answer.err
    assert ft("chat", "runs/mine", "--prompt", "x", "--max-tokens", "2").code == 0


def test_explain_says_why_a_recipe_or_a_run_chose_an_entry(ft: Any, folder: Path) -> None:
    answer = ft("plugins", "explain", "optimizer:toy", "recipe.yaml")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1].startswith("chosen here: optimizer is ")
    assert answer.out.splitlines()[-1].endswith("because: the recipe says so")
    assert ft("run", "recipe.yaml").code == 0
    again = ft("plugins", "explain", "optimizer:toy", "runs/mine")
    assert again.out.splitlines()[-1] == answer.out.splitlines()[-1]
    assert ft("plugins", "explain", "optimizer:adamw", "runs/mine").out.splitlines()[-1].startswith("not chosen here: ")


def test_check_writes_nothing(ft: Any, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    answer = ft("check", "recipe.yaml")
    assert answer.code == 0, answer.err
    assert "train.precision" in answer.out
    assert "1.50 GB" in answer.out
    assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in str(path)] == before


def test_what_does_not_fit_is_refused_before_anything_is_written(ft: Any, folder: Path) -> None:
    small = "hardware={name: toy, memory: 1000000000}"  # the toy takes 1.5 GB
    for command in ("check", "run"):
        answer = ft(command, "recipe.yaml", small)
        assert answer.code == 2 and len(answer.err.splitlines()) == 1
        assert answer.err.startswith(
            "error: memory: the run would take 1.50 GB at the peak (overhead 1.50 GB, weights 4 MB), and a toy "
            "computer has 1.00 GB (no installed plugin makes it fit"
        )
        assert "--accept-memory" in answer.err and "1.50 GB of 1.00 GB" in answer.out
        assert not (folder / "runs").exists()
    as_json = ft("check", "recipe.yaml", small, "--json")
    assert as_json.code == 2 and json.loads(as_json.out)["memory"]  # one document, though an error follows
    assert ft("check", "recipe.yaml", small, "--accept-memory").code == 0
    assert ft("run", "recipe.yaml", small, "train.accept_memory=true").code == 0


def test_who_only_talks_to_a_model_needs_no_memory_for_training(ft: Any, folder: Path) -> None:
    """The toy takes 1.5 GB, and another one for gradients."""
    assert ft("run", "recipe.yaml").code == 0
    trains = ("hardware={name: toy, memory: 2000000000}", "backend={name: toy, gradients: 1000000000}")
    assert ft("check", "recipe.yaml", *trains).code == 2
    talks = ft("chat", "runs/mine", *trains, "--prompt", "hi")
    assert talks.code == 0, talks.err
    small = "hardware={name: toy, memory: 1000000000}"
    refused = ft("chat", "runs/mine", small, "--prompt", "hi")
    assert refused.code == 2 and "error: memory: the model would take 1.50 GB at the peak" in refused.err
    assert ft("chat", "runs/mine", small, "--prompt", "hi", "--accept-memory").code == 0


def test_an_engine_of_python_is_refused_as_a_run_is(folder: Path) -> None:
    import finetooth

    small = "hardware={name: toy, memory: 1000000000}"
    with pytest.raises(PlanError, match=r"the run would take 1\.50 GB at the peak.*train\.accept_memory=true"):
        finetooth.engine("recipe.yaml", small)
    assert finetooth.engine("recipe.yaml", small, accept_memory=True).capabilities
    assert finetooth.engine("recipe.yaml", small, "train.accept_memory=true").capabilities


def test_memory_that_something_else_has_taken_is_missed_at_the_start(ft: Any, folder: Path) -> None:
    busy = "hardware={name: toy, available: 500000000}"
    answer = ft("run", "recipe.yaml", busy)
    assert answer.code == 2
    assert "a toy computer has 500 MB of 10.00 GB free now (end other programs that take memory" in answer.err
    interrupted = "plugins=[{use: ./toy_plugin.py, options: {interrupt_at: 2}}]"
    assert ft("run", "recipe.yaml", interrupted, "checkpoint.every=1").code == 130
    refused = ft("resume", "runs/mine", busy)
    assert refused.code == 2 and "free now" in refused.err
    assert ft("resume", "runs/mine", busy, "--accept-memory").code == 0


CARD = """
from dataclasses import dataclass
from finetooth_hooks import Hardware, Options, hookimpl

class CardOptions(Options):
    index: int = 0

@hookimpl
def ft_hardware():
    yield Hardware(
        name="card", build=f"{__name__}:build", framework="toy", rank=9, in_machine=lambda: "a toy card (t1)"
    )

def build(options: CardOptions, context):
    return Card(options.index)

class Card:
    def __init__(self, index):
        self.index = index

    def missing(self):
        return "this toy has no driver" if MISSING else ""

    def facts(self):
        from finetooth_hooks.protocols import Device, HardwareFacts

        found = [Device(f"card:{i}", f"card {i}", 10**10, index=i) for i in range(3)]
        first = found.pop(self.index)
        return HardwareFacts("card", (first, found[0]), ("fp32",), others=(found[1],))
"""


def test_a_device_that_is_passed_over_or_idle_has_a_line_of_its_own(ft: Any, folder: Path) -> None:
    plugins = "plugins=[./toy_plugin.py, ./card.py]"
    (folder / "card.py").write_text(f"MISSING = True\n{CARD}")
    lines = ft("check", "recipe.yaml", plugins, "hardware=auto").out.splitlines()
    assert "note: hardware: a toy card (t1) is in this machine and is not used: this toy has no driver" in lines
    assert not any("toy card" in line for line in ft("check", "recipe.yaml", plugins).out.splitlines())
    (folder / "card.py").write_text(f"MISSING = False\n{CARD}")
    for pick, note in (
        ("auto", "card:0 (card 0) computes; also here, and not used: card:1 (card 1), card:2 (card 2)"),
        ("{name: card, index: 1}", "card:1 (card 1) computes; also here, and not used: card:0 (card 0), card:2 (card"),
    ):
        lines = ft("check", "recipe.yaml", plugins, f"hardware={pick}").out.splitlines()
        assert any(line.startswith(f"note: hardware: {note}") for line in lines)


@pytest.mark.parametrize(("flag", "shown", "hidden"), [("-q", "plan ", "toys are"), ("-v", "total ", "-v shows")])
@pytest.mark.parametrize("command", ["check", "run"])
def test_how_much_of_the_plan_is_shown(ft: Any, command: str, flag: str, shown: str, hidden: str) -> None:
    usual, asked = ft("check", "recipe.yaml").out, ft(command, "recipe.yaml", flag).out
    assert shown in asked and hidden not in asked
    assert "train.precision" in usual and "more decisions: -v shows all" in usual
    both = ft(command, "recipe.yaml", "-v", "-q")
    assert (both.code, both.out) == (2, "")
    assert "--verbose and --quiet ask for opposite things" in both.err


def test_check_takes_the_output_of_a_run(ft: Any, folder: Path) -> None:
    taken = folder / "runs/taken"
    taken.mkdir(parents=True)
    for name in ("recipe.yaml", "plan.json"):
        (taken / name).touch()
    answer = ft("check", "recipe.yaml", "--output", "runs/taken")
    assert answer.code == 2
    assert "runs/taken already holds a run" in answer.err
    assert ft("check", "recipe.yaml", "--output", "runs/free").code == 0


def test_check_as_json(ft: Any) -> None:
    plan = json.loads(ft("check", "recipe.yaml", "train.seed=3", "--json").out)
    assert plan["train"]["seed"] == 3
    assert len(plan["hash"]) == 64


def test_most_rows_left_out_must_be_accepted(ft: Any, folder: Path) -> None:
    long = "".join(f"What is {i}?\tIt is {'very ' * 60}much.\n" for i in range(6))
    with (folder / "train.toy").open("a") as file:
        file.write(long)
    line = "data.train: 60 % of the rows are left out, 6 of 10: 6 longer than train.max_length (train.max_length, "
    checked = ft("check", "recipe.yaml", "train.max_length=128")
    assert checked.code == 0 and line in checked.out
    refused = ft("run", "recipe.yaml", "train.max_length=128")
    assert refused.code == 2 and line in refused.out
    assert "with --accept-dropped or data.accept_dropped=true" in refused.err
    assert not (folder / "runs").exists()
    assert ft("run", "recipe.yaml", "train.max_length=128", "--accept-dropped").code == 0
    assert ft("run", "recipe.yaml", "train.max_length=128", "data.accept_dropped=true", "output=other").code == 0
    assert ft("run", "recipe.yaml", "output=whole").code == 0


def test_rows_that_only_one_of_several_evaluators_leaves_out_are_told(ft: Any, folder: Path) -> None:
    pytest.importorskip("finetooth_exactmatch")
    with (folder / "train.toy").open("a") as file:
        file.write("How many?\tIt is 3 apples.\n")
    picks = "[toy_score, loss, {name: exact_match, max_tokens: 8, pattern: '([0-9]+) apples'}]"
    checked = ft("check", "recipe.yaml", f"evaluate.evaluators={picks}")
    assert checked.code == 0, checked.err
    reason = "4 expected answer has no match of pattern (pattern of exact_match)"
    assert f"data.eval: 80 % of the rows are left out, 4 of 5: {reason}" in checked.out


def test_a_run_keeps_the_options_it_had(ft: Any, folder: Path) -> None:
    """A default that changes after the run does not change what its weights mean."""
    assert ft("run", "recipe.yaml", "data.renderer=auto").code == 0
    source = (folder / "toy_plugin.py").read_text()
    (folder / "toy_plugin.py").write_text(source.replace("strength: float = 1.0", "strength: float = 2.0"))
    recipe = recipe_of(folder / "runs/mine")
    assert recipe["adapter"] == {"name": "toy", "strength": 1.0}
    assert recipe["model"] == {
        "name": "toy",
        "loader": {"name": "toy", "strength": 1.0},
        "family": {"name": "toy", "strength": 1.0},
    }
    assert recipe["data"]["renderer"] == {"name": "toy", "strength": 1.0}
    assert recipe["optimizer"] == "toy"
    assert ft("chat", "runs/mine", "--prompt", "x", "--max-tokens", "2").code == 0


def test_the_plugin_is_found_again_from_the_run_folder(ft: Any, folder: Path) -> None:
    (folder / "sub").mkdir()
    for name in ("recipe.yaml", "toy_plugin.py"):
        (folder / name).rename(folder / "sub" / name)
    assert ft("run", "sub/recipe.yaml").code == 0
    assert ft("chat", "runs/mine", "--prompt", "x").code == 0


def test_two_evaluators_of_one_name_have_metrics_of_their_own(ft: Any, folder: Path) -> None:
    best = ("checkpoint.select_on=eval/toy_score_2", "checkpoint.every=2")
    answer = ft("run", "recipe.yaml", "evaluate.evaluators=[toy_score, toy_score]", *best)
    assert answer.code == 0, answer.err
    metrics = json.loads(Path("runs/mine/result.json").read_text())["metrics"]
    assert {"eval/toy_score", "eval/toy_score_2"} <= metrics.keys()
