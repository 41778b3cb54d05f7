"""Learning from rollouts end to end: tokens are trained as they were drawn, and a run that is killed goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum, FinetoothError
from finetooth_rollouts.rollouts_file import read_rollouts

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left, rewound  # type: ignore[import-not-found]

PLUGIN = '''
"""A reward that answers of a random model differ in, and a look at what is scored."""
import json
from finetooth_hooks import NoOptions, Reward, hookimpl

@hookimpl
def ft_rewards():
    yield Reward(name="letters", build=f"{__name__}:build")

def build(options: NoOptions, context):
    return lambda prompts, completions, columns: [float(sum(c in "aeiou" for c in text)) for text in completions]

@hookimpl
def ft_rollouts_scored(run, rollouts):
    with (run.folder / "seen.jsonl").open("a") as file:
        file.write(json.dumps([run.step, len(rollouts), sum(len(one.tokens) for one in rollouts)]) + "\\n")
'''


@pytest.fixture
def online(online_recipe: Callable[..., Any]) -> Callable[..., Any]:
    """A recipe that learns from rollouts; keyword arguments go into its method."""
    method = {"name": "grpo", "num_generations": 4, "max_completion_length": 12}
    return online_recipe(method, {"batch_size": 2, "max_steps": 4}, PLUGIN)  # type: ignore[no-any-return]


SAMPLINGS = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 5},
    {"top_p": 0.6},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    {"temperature": 1.2, "min_p": 0.3},
    {"repetition_penalty": 1.3},
    {"temperature": 0.9, "top_k": 40, "min_p": 0.1, "repetition_penalty": 0.8},
]


@pytest.mark.parametrize("adapter", [{"name": "lora", "rank": 4}, "full"])
@pytest.mark.parametrize(
    "sampling", SAMPLINGS[2:3] + SAMPLINGS[-1:] + [pytest.param(one, marks=pytest.mark.slow) for one in SAMPLINGS]
)
def test_the_first_ratios_are_one(
    online: Callable[..., Any],
    adapter: Any,
    sampling: dict[str, Any],
    metrics: Callable[[Path], list[dict[str, float]]],
) -> None:
    """Two passes over each batch in two steps each: log-probabilities of the sampler and of the trainer's first pass
    are equal bit for bit, so the ratio of every token is 1; in the second pass the weights have moved."""
    given = online(num_iterations=2, mini_batches=2, **sampling)
    given["adapter"] = adapter
    outcome = finetooth.run(given)
    assert outcome.steps == 4
    found = metrics(Path(given["output"]))
    assert [one["ratio/min"] == one["ratio/max"] == 1.0 for one in found] == [True, False, False, False]
    assert found[0]["sampling/sampling_logp_difference/max"] < 1e-4


def test_the_first_ratios_are_one_where_a_batch_is_one_step(
    online: Callable[..., Any], metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    outcome = finetooth.run(online(num_iterations=2))
    assert outcome.steps == 4
    found = metrics(outcome_folder(outcome))
    assert [one["ratio/min"] == one["ratio/max"] == 1.0 for one in found] == [True, False, True, False]


def outcome_folder(outcome: Any) -> Path:
    return Path(outcome.artifact).parent


def test_what_is_kept_is_what_was_drawn_and_trained(online: Callable[..., Any]) -> None:
    """Files hold what the hook was given, advantages are those of the paper, and every log-probability is that of the
    distribution that the token was drawn from."""
    given = online(temperature=0.7)
    finetooth.run(given)
    folder = Path(given["output"])
    steps = dict(read_rollouts(folder))
    seen = [json.loads(line) for line in (folder / "seen.jsonl").read_text().splitlines()]
    assert sorted(steps) == [1, 2, 3, 4]
    assert seen == [[step, len(of), sum(len(one.tokens) for one in of)] for step, of in sorted(steps.items())]
    for of in steps.values():
        rewards = np.array([one.reward for one in of]).reshape(2, 4)
        expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
        for one, advantage in zip(of, expected.ravel(), strict=True):
            np.testing.assert_allclose(one.advantages, advantage, atol=1e-12)
            assert one.reward == float(sum(letter in "aeiou" for letter in one.text))
    first = steps[1][0]
    assert set(first.versions) == {0} and set(steps[4][0].versions) == {3}
    engine = finetooth.engine({**given, "output": str(folder) + "-again"})  # LoRA begins as its base
    weights = [0.0] * len(first.prompt) + [1.0] * len(first.tokens)
    datum = Datum.from_tokens([*first.prompt, *first.tokens], weights)
    logits = engine.forward([datum], returns=("logits",), train=False).outputs[0]["logits"][datum.mask]
    z = logits.astype(np.float64) / 0.7
    log_p = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)
    np.testing.assert_allclose(first.logprobs, log_p[np.arange(len(z)), first.tokens], atol=1e-4)


@pytest.mark.parametrize("at", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(online: Callable[..., Any], at: int) -> None:
    """Killed in the middle of a batch that is trained three times, with rollouts in flight, and after it."""
    given = online(num_iterations=3, temperature=0.8, top_k=20)
    given |= {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    whole = rewound(folder, at)
    assert finetooth.resume(folder).steps == 4
    assert differences(left(whole), left(folder)) == []
    kept_before, kept_after = dict(read_rollouts(whole)), dict(read_rollouts(folder))
    assert kept_before == kept_after and sorted(kept_before) == [1, 4]


LIAR = '''
"""A sampler whose log-probabilities are those of other weights."""
from dataclasses import replace
from finetooth_hooks import NoOptions, Sampler, SamplerBase, Sampled, hookimpl

@hookimpl
def ft_samplers():
    yield Sampler(name="liar", build=f"{__name__}:build")

class Liar(SamplerBase):
    def __init__(self, engine):
        self.engine = engine
    def sample(self, engine, prompts, sampling):
        found = self.engine.sample(engine, prompts, sampling)
        return Sampled(tuple(replace(one, logprobs=tuple(v - 0.25 for v in one.logprobs)) for one in found.rollouts))

def build(options: NoOptions, context):
    return Liar(context.build("sampler", "engine"))
'''


@pytest.mark.parametrize("num_iterations", [1, 2])
def test_a_sampler_that_is_too_far_off_ends_the_run(
    online: Callable[..., Any], tmp_path: Path, num_iterations: int, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """Before a step is taken with it; within the bound it is reported, and its own numbers stay in the rollouts."""
    (tmp_path / "liar.py").write_text(LIAR, encoding="utf-8")
    given = online(sampler="liar", max_logp_difference=0.2, num_iterations=num_iterations, train={"max_steps": 1})
    given["plugins"].append(str(tmp_path / "liar.py"))
    with pytest.raises(FinetoothError, match=r"method\.sampler.*0\.25 away.*at most 0\.2.*max_logp_difference"):
        finetooth.run(given)
    assert metrics(Path(given["output"])) == []
    given["method"]["max_logp_difference"] = 0.3
    given["output"] += "-within"
    finetooth.run(given)
    (found,) = metrics(Path(given["output"]))
    assert found["sampling/sampling_logp_difference/mean"] == pytest.approx(0.25, abs=1e-3)


BEHIND = LIAR.replace("logprobs=", "versions=(0,) * len(one.tokens), logprobs=")
KEPT = LIAR.replace("    def __init__", "    capabilities = frozenset({'other_weights'})\n    def __init__")


@pytest.mark.parametrize(("sampler", "steps"), [(LIAR, 0), (BEHIND, 0), (KEPT, 2)], ids=["now", "behind", "kept"])
def test_the_bound_is_narrow_where_the_weights_that_train_drew(
    online: Callable[..., Any],
    tmp_path: Path,
    sampler: str,
    steps: int,
    metrics: Callable[[Path], list[dict[str, float]]],
) -> None:
    """0.25 away is too far for weights of this moment, and no fault of others."""
    (tmp_path / "liar.py").write_text(sampler, encoding="utf-8")
    given = online(sampler="liar", train={"max_steps": 2})
    given["plugins"].append(str(tmp_path / "liar.py"))
    try:
        finetooth.run(given)
    except FinetoothError as error:
        assert "0.25 away" in str(error) and "at most 0.2 is allowed" in str(error)
    assert len(metrics(Path(given["output"]))) == steps


def test_tokens_of_earlier_weights_may_be_further_off(
    online: Callable[..., Any], tmp_path: Path, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """0.25 away once they are behind, what the recipe says holds there too."""
    late = BEHIND.replace("v - 0.25", "v - 0.25 * (engine.weights_version > 0)")
    (tmp_path / "liar.py").write_text(late, encoding="utf-8")
    given = online(sampler="liar", train={"max_steps": 2})
    given["plugins"].append(str(tmp_path / "liar.py"))
    finetooth.run(given)
    assert metrics(Path(given["output"]))[1]["sampling/sampling_logp_difference/mean"] > 0.2
    given["output"] += "-narrow"
    given["method"]["max_logp_difference"] = 0.2
    with pytest.raises(FinetoothError, match=r"at most 0\.2 is allowed"):
        finetooth.run(given)


BREAKING = (
    LIAR.replace('"liar"', '"breaking"')
    .replace(
        "        found = self.engine",
        """        from pathlib import Path
        from finetooth_hooks import EngineError
        mark = Path(__file__).with_name("broken")
        if engine.weights_version == 2 and mark.exists():
            raise EngineError("sampler breaking: the server is gone", action="see that it runs, then ft resume RUN")
        found = self.engine""",
    )
    .replace("v - 0.25", "v")
)


@pytest.mark.slow
def test_a_run_whose_sampler_died_goes_on(
    online: Callable[..., Any], tmp_path: Path, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """It ends with the reason; resumed once the sampler is there again, it is the run that nothing happened to."""
    (tmp_path / "breaking.py").write_text(BREAKING, encoding="utf-8")
    given = online(sampler="breaking") | {"checkpoint": {"every": 1, "keep_last": 9}}
    given["plugins"].append(str(tmp_path / "breaking.py"))
    (tmp_path / "broken").touch()
    with pytest.raises(FinetoothError, match="the server is gone"):
        finetooth.run(given)
    folder = Path(given["output"])
    assert len(metrics(folder)) == 2
    (tmp_path / "broken").unlink()
    assert finetooth.resume(folder).steps == 4
    whole = {**given, "output": str(tmp_path / "whole")}
    finetooth.run(whole)
    assert dict(read_rollouts(tmp_path / "whole")) == dict(read_rollouts(folder))
    weights = "artifact/adapter_model.safetensors"
    assert (tmp_path / "whole" / weights).read_bytes() == (folder / weights).read_bytes()


def test_groups_that_teach_nothing_are_passed_over(online: Callable[..., Any], tmp_path: Path) -> None:
    """A reward that is the same for all: nothing is learned, and the run says so at last."""
    same = PLUGIN.replace('float(sum(c in "aeiou" for c in text))', "1.0")
    (tmp_path / "letters.py").write_text(same, encoding="utf-8")
    with pytest.raises(FinetoothError, match=r"method\.rewards.*nothing to learn from"):
        finetooth.run(online(max_completion_length=1, num_generations=2))


def test_a_run_that_has_learned_all_there_is_ends_well(
    online: Callable[..., Any], tmp_path: Path, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """After two batches every answer is right: no group differs any more. That is an end, with what was learned."""
    counted = PLUGIN.replace("def build(", "CALLS = iter(range(10**6))\n\ndef build(").replace(
        'return lambda prompts, completions, columns: [float(sum(c in "aeiou" for c in text)) for text in completions]',
        "return lambda prompts, texts, columns: scores(len(texts), next(CALLS))\n\n"
        "def scores(count, call):\n    return [float(i % 2 or call > 1) for i in range(count)]",
    )
    (tmp_path / "letters.py").write_text(counted, encoding="utf-8")
    said: list[str] = []
    given = online(max_completion_length=1, num_generations=2)
    outcome = finetooth.session(given, say=said.append).run()
    assert outcome.steps == 2 and len(metrics(Path(given["output"]))) == 2
    assert (Path(given["output"]) / "artifact").is_dir()
    note = " ".join(said + [Path(file).read_text() for file in Path(given["output"]).glob("*.json")])
    assert "nothing is left to learn; the mean reward is 1 now" in note


def test_rollouts_are_shown(online: Callable[..., Any], ft: Callable[..., tuple[int, str, str]]) -> None:
    given = online(train={"max_steps": 2})
    finetooth.run(given)
    code, out, _ = ft("rollouts", given["output"], "--groups", "1")
    assert code == 0 and "step 2" in out and out.count("advantage") == 4
    code, _, err = ft("rollouts", given["output"], "--step", "9")
    assert code == 2 and "the run sampled nothing at this step" in err


def test_rollouts_of_one_answer_a_prompt_are_shown(
    online: Callable[..., Any], ft: Callable[..., tuple[int, str, str]]
) -> None:
    """As `ppo` and `opd` draw them unless they are told otherwise."""
    given = online(name="reinforce_plus_plus", num_generations=1, train={"max_steps": 1})
    finetooth.run(given)
    code, out, _ = ft("rollouts", given["output"])
    assert code == 0 and " -  " in out and out.count("advantage") == 2


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_the_policy_is_held_to_where_it_began(
    online: Callable[..., Any], kl_in: str, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """The first step is at the reference, so its KL is 0 and rewards are as they were; later ones are not."""
    given = online(beta=0.5, kl_in=kl_in, train={"max_steps": 2}, temperature=0.9)
    finetooth.run(given)
    found, steps = metrics(Path(given["output"])), dict(read_rollouts(Path(given["output"])))
    if kl_in == "loss":
        assert found[0]["kl"] == pytest.approx(0.0, abs=1e-9) and found[1]["kl"] > 1e-7
    else:
        apart = {
            n: max(abs((one.reward or 0) - (one.rewards["letters"] or 0)) for one in of) for n, of in steps.items()
        }
        assert apart[1] < 1e-4 and apart[2] > 1e-4


def test_dynamic_sampling_fills_batches_with_groups_that_differ(
    online: Callable[..., Any], metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """Two answers of three tokens are often alike: such groups are dropped, and others sampled in their place."""
    given = online(dynamic_sampling=True, num_generations=2, max_completion_length=3, train={"max_steps": 3})
    finetooth.run(given)
    steps = dict(read_rollouts(Path(given["output"])))
    assert [len(of) for of in steps.values()] == [4, 4, 4]
    for of in steps.values():
        assert all(a.reward != b.reward for a, b in zip(of[::2], of[1::2], strict=True))
    assert any(one["num_rollouts"] > 4 for one in metrics(Path(given["output"])))


def test_answers_that_were_cut_off_can_be_left_out(online: Callable[..., Any]) -> None:
    """All are cut off here: their step has no gradient, and the weights stay as they were."""
    given = online(mask_truncated_completions=True, max_completion_length=2, train={"max_steps": 1})
    finetooth.run(given)
    lines = map(json.loads, (Path(given["output"]) / "metrics.jsonl").read_text().splitlines())
    step = next(line for line in lines if line["event"] == "step")
    assert step["metrics"]["completions/clipped_ratio"] == 1.0 and step["grad_norm"] == 0.0
