"""Which tokens train, and where that was compared with nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetooth_importer.command import read_tool, uncompared


def test_what_trains_is_decided_by_the_rows_of_trl(tmp_path: Path) -> None:
    """Texts are read without markup, conversations train whole, one column of text is pre-training; unseen rows are
    said to be unseen."""
    given = {"trainer": "sft", "model": "m", "dataset_name": "rows.jsonl"}
    said = {"role": "user", "content": "a"}
    for row, data, method in (
        ({"prompt": "a", "completion": "b"}, {"name": "prompt_completion", "style": "raw"}, ("sft", "assistant")),
        ({"prompt": [said], "completion": [said]}, None, ("sft", "all")),
        ({"messages": [said]}, None, ("sft", "all")),
        ({"text": "a"}, None, ("pretrain", None)),
    ):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        made = read_tool(given, "trl", tmp_path / "train.py").recipe
        assert made["data"].get("format") == data
        assert (made["method"]["name"], made["method"].get("train_on")) == method
    assert read_tool(given | {"completion_only_loss": True}, "trl").recipe["method"]["train_on"] == "assistant"
    assert read_tool(given | {"assistant_only_loss": False}, "trl").recipe["method"]["train_on"] == "all"
    (line,) = (line for line in read_tool(given, "trl") if line.setting == "method.train_on")
    assert "the rows were not seen" in line.note


def test_rows_of_axolotls_alpaca_keep_its_prompt() -> None:
    """Alone they are written by the renderer that has it; beside others they are not, and the list says so."""
    alpaca, chat = {"path": "rows.jsonl", "type": "alpaca"}, {"path": "chats.jsonl", "type": "chat_template"}
    account = read_tool({"base_model": "m", "datasets": [alpaca], "chat_template": "chatml"}, "axolotl")
    assert account.recipe["data"]["renderer"] == {"name": "alpaca", "preamble": True}
    assert account.recipe["data"]["train"]["format"] == {"name": "instruction", "separator": "\n\n### Input:\n"}
    (line,) = (line for line in account if line.key == "datasets[0].type")
    assert (line.outcome, line.setting) == ("otherwise", "data.renderer")
    mixed = read_tool({"base_model": "m", "datasets": [alpaca, chat], "chat_template": "chatml"}, "axolotl")
    assert mixed.recipe["data"]["renderer"] == {"name": "chatml", "default_system": ""}
    (line,) = (line for line in mixed if line.key == "datasets[0].type")
    assert line.outcome == "otherwise" and "Alpaca's prompt" in line.note


def test_what_trains_and_was_compared_with_nobody_is_said(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": []}) + "\n", encoding="utf-8")
    talks, alpaca = ({"path": "rows.jsonl", "type": kind} for kind in ("chat_template", "alpaca"))
    cases: list[tuple[str, dict[str, Any], bool]] = [
        ("axolotl", {"base_model": "m", "datasets": [{"path": "rows.jsonl", "type": "alpaca"}]}, True),
        ("axolotl", {"base_model": "m", "pretraining_dataset": "rows.jsonl"}, False),
        ("axolotl", {"base_model": "m", "datasets": [talks], "chat_template": "llama3"}, False),
        ("axolotl", {"base_model": "m", "datasets": [talks], "chat_template": "phi_4"}, True),
        ("axolotl", {"base_model": "m", "datasets": [talks, alpaca], "chat_template": "llama3"}, True),
        ("llamafactory", {"model_name_or_path": "m", "dataset": "faq", "template": "qwen3"}, False),
        ("llamafactory", {"model_name_or_path": "m", "dataset": "faq", "template": "bailing"}, True),
        ("llamafactory", {"model_name_or_path": "m", "dataset": "faq"}, True),
        ("trl", {"trainer": "sft", "model": "m", "dataset_name": "rows.jsonl"}, False),
        ("trl", {"trainer": "sft", "model": "m", "dataset_name": "org/rows"}, True),
        ("trl", {"trainer": "grpo", "model": "m", "dataset_name": "org/rows"}, False),
    ]
    for tool, given, doubted in cases:
        said = uncompared(read_tool(given, tool, tmp_path / "run.py"), tool)
        assert bool(said) == doubted, (tool, given, said)
        assert (
            not doubted or said == f"For rows like these, nobody has compared the trained tokens with those of {tool}"
        )


@pytest.mark.parametrize(("value", "place"), [(True, "host"), ("legacy", "host"), ("disk", "disk")])
def test_what_leaves_the_device_of_axolotl(value: object, place: str) -> None:
    account = read_tool({"base_model": "m", "activation_offloading": value, "layer_offloading": True}, "axolotl")
    assert account.recipe["backend"] == {"name": "torch", "activations": place, "layers": "host"}
    off = read_tool({"base_model": "m", "activation_offloading": False, "layer_offloading": False}, "axolotl")
    assert "backend" not in off.recipe and {line.outcome for line in off if "offloading" in line.key} == {"no effect"}


def test_dropout_is_off_where_the_trainer_turns_it_off() -> None:
    """TRL sets `p` of every `nn.Dropout` of the policy to 0, those of peft's layers too, in all but sft and the online
    trainers."""
    given = {"model_name_or_path": "m", "dataset_name": "a/b", "use_peft": True, "lora_dropout": 0.1}
    for trainer, off in (("sft", False), ("dpo", True), ("kto", True), ("orpo", True), ("reward", True),
                         ("grpo", False)):  # fmt: skip
        for said, expected in ((None, off), (True, True), (False, False)):
            if said is not None and trainer == "sft":
                continue
            keys = {**given, "trainer": trainer, **({} if said is None else {"disable_dropout": said})}
            assert read_tool(keys, "trl").recipe["adapter"]["dropout"] == (0.0 if expected else 0.1), (trainer, said)
    for rl, dropout in (("dpo", 0.0), (None, 0.1)):
        keys = {"base_model": "m", "datasets": [], "adapter": "lora", "lora_dropout": 0.1, "rl": rl}
        assert read_tool(keys, "axolotl").recipe["adapter"]["dropout"] == dropout


SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine_with_restarts": {}, "polynomial": {}, "inverse_sqrt": {}, "cosine_with_min_lr": {"min_lr": 2e-5},
    "warmup_stable_decay": {"num_decay_steps": 30}, "linear": {}, "cosine": {},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_the_one_of_transformers(name: str, tmp_path: Path) -> None:
    """The rates of a run by the imported schedule, and those of transformers' scheduler of that name."""
    torch, optimization = pytest.importorskip("torch"), pytest.importorskip("transformers.optimization")
    pytest.importorskip("finetooth_schedules")
    from finetooth_kit import FakeContext, entries_of

    for more in ({}, {"num_cycles": 3} if "restarts" in name else {"power": 3.0} if name == "polynomial" else {}):
        options = {**SCHEDULES[name], **more}
        keys = {"trainer": "sft", "dataset_name": "a/b", "lr_scheduler_type": name, "learning_rate": 1e-4,
                "max_steps": 100, "warmup_steps": 10, "lr_scheduler_kwargs": options}  # fmt: skip
        account = read_tool(keys, "trl")
        assert not [line for line in account if line.outcome == "not taken"]
        context = FakeContext(tmp_path, entries=tuple(entries_of("finetooth_schedules.plugin")))
        ours = context.build("schedule", account.recipe["schedule"])
        adam = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1e-4)
        theirs = optimization.get_scheduler(name, adam, 10, 100, options).lr_lambdas[0]
        # their warm-up begins at 0, so their update n + 1 has the rate of our n: only the fall has the same place
        falls = [(ours.factor(step, 100), theirs(step)) for step in range(10, 100)]
        assert [a for a, _ in falls] == pytest.approx([b for _, b in falls], abs=1e-9)


def test_what_a_schedule_cannot_take_is_named() -> None:
    keys = {"trainer": "sft", "dataset_name": "a/b", "lr_scheduler_type": "cosine_with_restarts",
            "lr_scheduler_kwargs": {"num_cycles": 2, "bent": 1}}  # fmt: skip
    account = read_tool(keys, "trl")
    assert account.recipe["schedule"]["cycles"] == 2
    assert [line.note for line in account if line.key == "lr_scheduler_kwargs"] == [
        "give the schedule its options: schedule: {name: ..., ...}; not taken of it: bent"
    ]
    plateau = read_tool({**keys, "lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": '{"factor": 0.2}'},
                        "trl").recipe["schedule"]  # fmt: skip
    assert plateau | {"drop": 0.2, "patience": 10, "metric": "eval/loss"} == plateau


def test_betas_of_lion_are_those_of_transformers() -> None:
    keys = {"trainer": "sft", "dataset_name": "a/b", "optim": "lion_32bit"}
    assert read_tool(keys, "trl").recipe["optimizer"]["betas"] == [0.9, 0.999]


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"use_peft": True, "bias": "all"}, "bias"),
        ({"dataset_kwargs": {"add_special_tokens": False}}, "dataset_kwargs"),
        ({"model_init_kwargs": {"dtype": "bfloat16", "rope_theta": 1.0}}, "model_init_kwargs"),
        ({"train_dataset.shuffle": "seed=3", "train_dataset.select": "[:10]"}, "train_dataset.shuffle"),
    ],
)
def test_what_changes_training_is_not_passed_over(keys: dict[str, Any], name: str) -> None:
    account = read_tool({"trainer": "sft", "dataset_name": "a/b", **keys}, "trl")
    assert [line.outcome for line in account if line.key == name] == ["not taken"]


def test_order_and_revision_are_taken() -> None:
    keys = {"trainer": "grpo", "dataset_name": "a/b", "shuffle_dataset": False,
            "model_init_kwargs": {"revision": "abc", "dtype": "bfloat16"}}  # fmt: skip
    recipe = read_tool(keys, "trl").recipe
    assert recipe["train"]["shuffle"] is False
    assert recipe["model"]["loader"] == {"name": "transformers", "revision": "abc"}


def test_losses_and_references_of_trls_trainers() -> None:
    given = {"dataset_name": "a/b", "model_name_or_path": "m"}
    simpo = {**given, "trainer": "cpo", "loss_type": "simpo", "simpo_gamma": 0.7, "cpo_alpha": 0.5}
    expected = {"name": "simpo", "beta": 0.1, "gamma": 0.7, "sft_weight": 0.5}
    assert read_tool(simpo, "trl").recipe["method"] == expected
    dpo = read_tool({**given, "trainer": "dpo", "sync_ref_model": True, "ref_model_sync_steps": 7}, "trl").recipe
    assert dpo["method"]["reference"]["sync_every"] == 7
    reward = read_tool({**given, "trainer": "reward", "center_rewards_coefficient": 0.01}, "trl").recipe
    assert reward["method"]["center_rewards_coefficient"] == 0.01
