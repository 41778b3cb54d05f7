"""A function as a sampler: what it is given, that it draws as the engine does, and what it may not return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_enginesampler.function import FunctionSampler, FunctionSamplerOptions, build
from finetooth_enginesampler.sampler import EngineSampler
from finetooth_hooks import EngineError, PlanError, RecipeError, Sampling
from finetooth_hooks.rollouts import Prompt
from finetooth_kit import ByteTokenizer, FakeEngine
from finetooth_kit.fake_context import FakeContext
from finetooth_rollouts.checked_sampler import CheckedSampler
from pydantic import ValidationError

PROMPTS = [Prompt("a:1", "a:1@1", (70, 71, 72)), Prompt("a:2", "a:2@1", (73,))]
SAMPLING = Sampling(max_tokens=8, n=3, seed=7)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., FunctionSampler]:
    """Makes samplers of the text of a function `answered`."""

    def make(text: str, **options: Any) -> FunctionSampler:
        (tmp_path / "answering.py").write_text(text, encoding="utf-8")
        file = str(tmp_path / "answering.py")
        return build(
            FunctionSamplerOptions(function="answered", file=file, **options), FakeContext(tmp_path, installed=True)
        )

    return make


def sampled(sampler: Any, sampling: Sampling = SAMPLING, prompts: list[Prompt] | None = None) -> Any:
    checked = CheckedSampler(sampler, "python_function", 320)
    return checked.sample(
        FakeEngine(ByteTokenizer(), FakeContext(Path()).renderer.stop_ids), prompts or PROMPTS, sampling
    ).rollouts


def test_one_that_samples_once_is_the_engine(made: Callable[..., FunctionSampler]) -> None:
    """To the bit, and prompts that are alike are not answered alike. A run compares texts and ends, which the kit's
    engine makes otherwise (`tests/runs/test_function_rollouts.py`)."""
    plain = made("def answered(prompt_ids, generate):\n    return generate(prompt_ids)\n")
    found, expected = ([replace(r, text="") for r in sampled(s)] for s in (plain, EngineSampler()))
    assert found == expected
    alike = [PROMPTS[0], Prompt("a:1", "a:1@2", PROMPTS[0].tokens)]
    assert len({rollout.tokens for rollout in sampled(plain, prompts=alike)}) == 6


TURNS = """
def answered(prompts, prompt_ids, generate, encode, decode, max_tokens, step):
    assert [decode(ids) for ids in prompt_ids] == prompts and step == 0
    first = generate(prompt_ids, max_tokens=3)
    said = encode("?!")
    further = generate([p + c + said for p, c in zip(prompt_ids, first["completion_ids"])], max_tokens=2)
    parts = list(zip(first["completion_ids"], first["logprobs"], further["completion_ids"], further["logprobs"]))
    return {
        "completion_ids": [a + said + c for a, _, c, _ in parts],
        "logprobs": [b + [0.0] * len(said) + d for _, b, _, d in parts],
        "env_mask": [[1] * len(a) + [0] * len(said) + [1] * len(c) for a, _, c, _ in parts],
        "length": [len(c) for _, _, c, _ in parts],
    }
"""


def test_what_others_wrote_is_marked(made: Callable[..., FunctionSampler]) -> None:
    """Between two turns: of no version and not of the policy; each turn is what the engine writes there."""
    rollouts = sampled(made(TURNS, columns=["length"]))
    said = tuple(ByteTokenizer().encode("?!"))
    for rollout in rollouts:
        own = rollout.own.index(False)
        assert tuple(t for t, mine in zip(rollout.tokens, rollout.own, strict=True) if not mine) == said
        assert [version == 0 for version in rollout.versions] == list(rollout.own)
        assert rollout.metrics == {"length": float(len(rollout.tokens) - own - len(said))}
        assert "?!" in rollout.text
    ends = {rollout.tokens[-2:] for rollout in rollouts if rollout.prompt == PROMPTS[0].tokens}
    assert len(ends) > 1  # a second call draws anew


@pytest.mark.parametrize(("change", "message"), [
    ("made['logprobs'][0].pop()", r"returned 8 completion_ids with 7 logprobs"),
    ("made['logprobs'].pop()", r"returned 5 logprobs for 6 prompts"),
    ("made['completion_ids'][1][0] = 320", r"gave the token 320, and the model has 320"),
    ("made['completion_ids'][1][0] = 1.5", r"returned something that is not a number"),
    ("made['logprobs'][2][0] = float('nan')", r"gave a log-probability that is none"),
    ("made['completion_ids'][0] *= 2; made['logprobs'][0] *= 2", r"gave 16 tokens, 1 to 8 were asked for"),
    ("made['env_mask'] = [[0] * 8] * 6", r"with 8 logprobs and 8 env_mask, 0 of them 1"),
    ("made['prompt_ids'][0] = [1]", r"returned other prompt_ids than it got"),
    ("made['won'] = [1.0] * 6", r"returned won too \(name it in method\.sampler\.columns"),
    ("del made['logprobs']", r"returned no logprobs"),
    ("made = 3", r"returned int, not a mapping of lists"),
    ("1 / 0", r"answered of .*answering\.py raised ZeroDivisionError: division by zero \(fix it, then ft resume RUN\)"),
])  # fmt: skip
def test_what_a_function_returns_is_checked(made: Callable[..., FunctionSampler], change: str, message: str) -> None:
    text = f"def answered(prompt_ids, generate):\n    made = generate(prompt_ids)\n    {change}\n    return made\n"
    with pytest.raises(EngineError, match=message):
        sampled(made(text), Sampling(max_tokens=8, n=3, seed=7, stop_ids=()))


def test_a_function_that_cannot_be_called_is_refused(made: Callable[..., FunctionSampler], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"it takes 'trainer' \(take some of prompts, prompt_ids, generate"):
        made("def answered(prompts, trainer): ...")
    with pytest.raises(RecipeError, match=r"answering\.py has no 'answered'"):
        made("def other(): ...")
    with pytest.raises(RecipeError, match=r"answering\.py cannot be loaded: SyntaxError"):
        made("def answered(")
    with pytest.raises(ValidationError, match="give either file or module"):
        FunctionSamplerOptions(function="answered")
    with pytest.raises(ValidationError, match="outcome is a reserved name"):
        FunctionSamplerOptions(function="answered", file="a.py", columns=["outcome"])
    with pytest.raises(PlanError, match="does not say which tokens top_k"):
        sampled(made("def answered(prompt_ids, generate):\n    return generate(prompt_ids)\n"), Sampling(8, top_k=3))
