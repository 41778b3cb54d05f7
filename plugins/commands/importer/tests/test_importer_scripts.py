"""What a script does with its rows between loading and training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_importer.account import Account
from finetooth_importer.command import read_tool
from finetooth_importer.script import of_script

Outcomes = Callable[[Account], dict[str, tuple[str, str]]]

TALK = """
def to_chat(row):
    return {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["q"]},
                         {"role": "assistant", "content": row["a"]}]}
"""


def imported(rows: str, *, train: str = "rows", held: str = "", more: str = "") -> Account:
    held = f", eval_dataset={held}" if held else ""
    text = f"{more}\n{rows}\nSFTTrainer(model='m', args=SFTConfig(eval_strategy='epoch'), train_dataset={train}{held})"
    return read_tool(of_script(text, Path("a.py")), "trl")


def test_a_function_that_names_columns_is_a_format(read_as: Callable[[Any, dict[str, Any]], Any]) -> None:
    """The rows that `map` makes, run here, and those that the format makes of the same row."""
    account = imported("rows = load_dataset('csv', data_files='a.csv')\nrows = rows.map(to_chat)", more=TALK)
    space: dict[str, Any] = {}
    exec(TALK, space)
    row = {"q": "2 + 2?", "a": "4"}
    made = read_as(account.recipe["data"]["format"], row)
    said = [{"role": message.role, "content": message.content} for message in made.messages]
    assert said == space["to_chat"](row)["messages"]
    raw = imported("rows = load_dataset('a/b').map(lambda r: {'prompt': r['q'], 'completion': r['a']})")
    assert raw.recipe["data"]["format"] == {
        "name": "prompt_completion", "prompt": "q", "completion": "a", "style": "raw",
    }  # fmt: skip
    assert raw.recipe["method"]["train_on"] == "assistant"


@pytest.mark.parametrize(
    ("step", "key"),
    [
        (".map(lambda row: {'text': row['q'] + row['a']})", "train_dataset.map"),
        (".filter(lambda row: len(row['q']) > 3)", "train_dataset.filter"),
        (".rename_column('q', 'prompt')", "train_dataset.rename_column"),
        (".select(ids)", "train_dataset.select"),
        (".train_test_split(test_size=100)['train']", "train_test_split"),
    ],
)
def test_what_cannot_be_read_off_is_listed(step: str, key: str, outcomes: Outcomes) -> None:
    held = "rows" if "split" in step else ""
    account = imported(f"rows = load_dataset('a/b', split='train')\nrows = rows{step}", held=held)
    assert outcomes(account)[key][0] == "not taken"
    took, there = account.shares()
    assert took < there


def test_parts_of_rows(outcomes: Outcomes) -> None:
    halves = "rows = load_dataset('a.jsonl').shuffle(seed=1).train_test_split(test_size=0.2)"
    account = imported(halves, train="rows['train']", held="rows['test']")
    assert account.recipe["data"]["eval"] == {"fraction": 0.2}
    assert outcomes(account)["train_dataset.shuffle"][0] == "no effect"
    both = "train = load_dataset('a/b', split='train')\ntest = load_dataset('c/d', 'main', split='test')"
    data = imported(both, train="train", held="test").recipe["data"]
    assert (
        data["eval"] == {"name": "datasets", "path": "c/d", "split": "test"} | data["eval"] and data["train"] == "a/b"
    )
    parts = imported("rows = load_dataset('a/b')", train="rows['train']", held="rows['validation']").recipe["data"]
    assert parts["eval"]["split"] == "validation"
    some = imported("rows = load_dataset('json', data_files='a.jsonl', split='train').select(range(100))")
    assert some.recipe["data"]["train"] == "a.jsonl[:100]"
    made = imported("rows = concatenate_datasets([one, two])")
    assert outcomes(made)["train_dataset"][0] == "not taken"


def test_what_a_trainer_is_given_beside_is_listed(outcomes: Outcomes) -> None:
    text = "rows = load_dataset('a/b')\nSFTTrainer(model='m', train_dataset=rows, formatting_func=f, callbacks=[c])"
    found = outcomes(read_tool(of_script(text, Path("a.py")), "trl"))
    assert found["formatting_func"][0] == found["callbacks"][0] == "not taken"


def test_parts_of_a_key_that_are_not_taken_count() -> None:
    given = {"base_model": "m", "datasets": [], "sequence_len": 8, "rl": "grpo", "trl": {"beta": 0.1, "no_such": 1}}
    account = read_tool(given, "axolotl")
    took, there = account.shares()
    assert (took, there) == (len(given) + 1, len(given) + 2)


def test_a_teacher_of_trl_is_taken_with_its_defaults() -> None:
    """Of GKDTrainer: whole distributions are compared, and what it leaves out stands here as it does there."""
    text = """
from trl.experimental.gkd import GKDConfig, GKDTrainer
args = GKDConfig(output_dir="out", lmbda=0.3, beta=0.1, seq_kd=True, max_new_tokens=64)
GKDTrainer(model="small", teacher_model="large", args=args, train_dataset=load_dataset("org/chats", split="train"))
"""
    account = read_tool(of_script(text, Path("gkd.py")), "trl")
    assert account.recipe["method"] == {
        "name": "gkd", "teacher": "large", "lmbda": 0.3, "beta": 0.1, "seq_kd": True, "max_completion_length": 64,
        "top_k": 0,
    }  # fmt: skip
    assert account.recipe["optimizer"]["learning_rate"] == 2e-5
    (line,) = (line for line in account if line.key == "seq_kd")
    assert line.outcome == "otherwise" and "rows are only prompts" in line.note


CHANGED = """
common = {"learning_rate": 3e-4, "max_steps": 7}
model = AutoModelForCausalLM.from_pretrained("m", revision="abc", load_in_8bit=True, rope_theta=1.0)
tokenizer.chat_template = TEMPLATE
tokenizer.add_tokens(["<x>"])
config = GenerationConfig(temperature=0.1, top_k=3)
trainer = SFTTrainer(model=model, args=SFTConfig(**common, **read("a.json")), train_dataset=load_dataset("a/b"))
"""


def test_what_a_script_does_to_its_model_is_listed(outcomes: Outcomes) -> None:
    account = read_tool(of_script(CHANGED, Path("a.py")), "trl")
    recipe, made = account.recipe, outcomes(account)
    assert recipe["optimizer"]["learning_rate"] == 3e-4 and recipe["train"]["max_steps"] == 7
    assert recipe["model"] == {"name": "m", "loader": {"name": "transformers", "revision": "abc"}}
    assert recipe["quantization"] == "int8"
    for key in ("chat_template", "add_tokens", "model_init_kwargs", "**read('a.json')"):
        assert made[key][0] == "not taken", key
    assert not {"temperature", "top_k"} & made.keys()  # those of answers are no settings of a trainer
    below = "if False:\n" + CHANGED.strip().replace("\n", "\n    ").replace("common", "    common", 1) + "\n"
    assert "add_tokens" not in of_script(below + "SFTConfig(max_steps=2)", Path("a.py"))


def test_two_trainers_are_not_one_run(outcomes: Outcomes) -> None:
    text = "SFTTrainer(args=SFTConfig(max_steps=9))\nGRPOTrainer(args=GRPOConfig(beta=0.1))"
    assert outcomes(read_tool(of_script(text, Path("a.py")), "trl"))["other trainers"][0] == "not taken"


def test_another_adapter_is_never_a_lora_without_a_word(outcomes: Outcomes) -> None:
    text = "SFTTrainer(args=SFTConfig(max_steps=9), peft_config=IA3Config(target_modules=['k_proj']))"
    assert outcomes(read_tool(of_script(text, Path("a.py")), "trl"))["IA3Config"][0] == "not taken"


UNSLOTH = """
model, tokenizer = FastLanguageModel.from_pretrained("m", revision="abc")
model = FastLanguageModel.get_peft_model(model)
tokenizer = get_chat_template(tokenizer, chat_template="llama-3.1")
trainer = train_on_responses_only(SFTTrainer(model=model, args=SFTConfig(max_steps=2)))
"""


def test_markup_and_revision_of_an_unsloth_script(outcomes: Outcomes) -> None:
    account = read_tool(of_script(UNSLOTH, Path("a.py")), "unsloth")
    assert outcomes(account)["get_chat_template"][0] == "not taken"
    assert account.recipe["model"]["loader"]["revision"] == "abc"
    assert account.recipe["method"]["train_on"] == "assistant" and "assistant_only_loss" not in outcomes(account)


def test_rewards_of_a_script_stand_where_a_worker_can_read_them() -> None:
    """One of a module is imported from there; one of the script itself would train when it is imported."""
    text = """
from datasets import load_dataset
from graders import exact as right
from trl.rewards import think_format_reward
def near(completions, **columns):
    return [-abs(20.5 - len(c)) for c in completions]
GRPOTrainer(model="m", args=GRPOConfig(), reward_funcs=[near, right, make(0.5), think_format_reward],
            train_dataset=load_dataset("json", data_files="a.jsonl", split="train"))
"""
    account = read_tool(of_script(text, Path("a.py")), "trl")
    own = {"name": "python_function", "file": "rewards.py"}
    assert account.recipe["method"]["rewards"] == [
        {**own, "function": "near"},
        {"name": "python_function", "module": "graders", "function": "exact"},
        {**own, "function": "make(0.5)"},
        {"name": "tag_format"},
    ]
    assert account.recipe["data"]["format"] == "task"  # rows with an answer, too, ask their prompt alone
    (note,) = [line.note for line in account if line.key == "reward_funcs"]
    assert "copy near, make(0.5)" in note
