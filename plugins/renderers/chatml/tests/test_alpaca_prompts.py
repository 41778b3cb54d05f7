"""`alpaca` with its preamble against axolotl's type `alpaca`, whose prompt and tokens are written out here."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from finetooth_chatml.classic import AlpacaOptions, build_alpaca
from finetooth_hooks import Conversation, Message
from finetooth_kit import FakeContext
from finetooth_toolbox.text.tokenizers import FastTokenizer
from tokenizers.processors import TemplateProcessing

WITH = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd the numbers.\n\n### Input:\n2, 2\n\n### Response:\n"
)
WITHOUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nWhen do you open?\n\n### Response:\n"
)


def asked(question: str, answer: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)))


@pytest.fixture(params=[False, True], ids=["plain", "adds bos"])
def tokenizer(request: pytest.FixtureRequest, smollm2: FastTokenizer) -> FastTokenizer:
    """One that has a beginning-of-text token and puts none, and one that puts it."""
    wrapped = copy.deepcopy(smollm2.wrapped)
    if request.param:
        bos = wrapped.bos_token
        wrapped.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, wrapped.bos_token_id)]
        )
    made = FastTokenizer(wrapped)
    assert made.adds_bos is request.param and made.bos_id is not None
    return made


@pytest.mark.parametrize(
    ("question", "answer", "prompt"),
    [
        ("Add the numbers.\n\n### Input:\n2, 2", "4", WITH),
        ("When do you open?", "At nine.", WITHOUT),
        ("When do you open?", " At nine, I\u2019d say.\n\nOr ten.", WITHOUT),
    ],
)
def test_tokens_and_mask_are_axolotls(
    tokenizer: FastTokenizer, tmp_path: Path, question: str, answer: str, prompt: str
) -> None:
    """It encodes the prompt, masks it, encodes the answer by itself without a beginning-of-text token, and puts the
    end-of-text token behind it."""
    wrapped = tokenizer.wrapped
    before = wrapped(prompt)["input_ids"]
    trained = [*wrapped(answer, add_special_tokens=False)["input_ids"], wrapped.eos_token_id]
    renderer = build_alpaca(AlpacaOptions(preamble=True), FakeContext(tmp_path, tokenizer=tokenizer))
    rendered = renderer.render(asked(question, answer))
    assert list(rendered.tokens) == [*before, *trained]
    assert list(rendered.weights) == [0.0] * len(before) + [1.0] * len(trained)
    assert list(renderer.prompt((Message("user", question),))) == before  # what `ft chat` asks with


def test_a_system_message_stands_in_its_place(tokenizer: FastTokenizer, tmp_path: Path) -> None:
    renderer = build_alpaca(AlpacaOptions(preamble=True), FakeContext(tmp_path, tokenizer=tokenizer))
    said = tokenizer.decode(renderer.prompt((Message("system", "Be brief."), Message("user", "Hi?"))))
    assert said.removeprefix(tokenizer.wrapped.bos_token) == "Be brief.\n\n### Instruction:\nHi?\n\n### Response:\n"
