"""The kit tested: good plugins pass everything, and each broken one fails the check that is about its fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from finetooth_hooks import Loss
from finetooth_kit import CheckResult, collect, failures, parametrize_with_checks, run_check, run_checks

Write = Callable[..., str]

LOSS = """
@hookimpl
def ft_losses():
    yield Loss(name="tried", build="{me}_parts:build", summary="a loss", together="TOGETHER")
"""
BUILD = """
def build(options: NoOptions, context: Context) -> LossFn:
    return loss

"""
SUM = "-xp.sum(outputs['logprobs'] * data.fields['weights'])"


def _loss(write: Write, body: str, together: str = "sequence", field: str | None = None) -> list[CheckResult]:
    function = "def loss(outputs, data, state):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    entry = LOSS.replace('"TOGETHER"', f"{together!r}, proportional_to={field!r}")
    return _run(write(entry, BUILD + function))


def _run(module: str) -> list[CheckResult]:
    """All checks but the one that starts a process of its own, which `test_broken_module_fails` is about."""
    return [run_check(check) for check in collect(module) if check.name != "imports_nothing_heavy"]


def _failed(results: list[CheckResult]) -> set[str]:
    return {result.check for result in failures(results)}


def test_good_loss_passes_every_check(plugin: Write) -> None:
    results = _loss(plugin, f"return LossResult({{'a': Contribution({SUM})}}, state=state)")
    assert not failures(results)
    assert {"masked_targets_do_not_matter", "parts_sum_to_the_whole", "gradient_is_the_slope"} <= {
        result.check for result in results if result.status == "passed"
    }


BROKEN_LOSSES = {
    "masked_targets_do_not_matter": "return LossResult({'a': Contribution(xp.sum(xp.exp(outputs['logprobs'])))})",
    "parts_sum_to_the_whole": "return LossResult({'a': Contribution(-xp.mean(xp.sum(outputs['logprobs'], axis=1)))})",
    "order_does_not_matter": (
        "rank = xp.astype_like(xp.arange(data.sequences, data.mask), outputs['logprobs'])\n"
        "return LossResult({'a': Contribution(xp.sum(xp.sum(outputs['logprobs'], axis=1) * rank))})"
    ),
    "evaluation_is_repeatable": (
        "loss.calls = getattr(loss, 'calls', 0) + 1\n"
        "return LossResult({'a': Contribution(xp.sum(outputs['logprobs']) * loss.calls)})"
    ),
    "a_sequence_that_does_not_count_stays_finite": (
        "count = xp.sum(data.mask, axis=1)\n"
        "return LossResult({'a': Contribution(xp.sum(xp.sum(outputs['logprobs'], axis=1) / count))})"
    ),
    "gradient_is_the_slope": (
        "p = outputs['logprobs']\nreturn LossResult({'a': Contribution(xp.sum(p * xp.stop_gradient(p)))})"
    ),
    "torch_agrees_with_numpy": (
        "p = outputs['logprobs']\n"
        "extra = 1.0 if type(p).__module__ == 'torch' else 0.0\n"
        "return LossResult({'a': Contribution(xp.sum(p) + extra)})"
    ),
    "mlx_agrees_with_numpy": (
        "p = outputs['logprobs']\n"
        "extra = 1.0 if type(p).__module__.startswith('mlx') else 0.0\n"
        "return LossResult({'a': Contribution(xp.sum(p) + extra)})"
    ),
    "state_keeps_the_rule": f"return LossResult({{'a': Contribution({SUM})}}, state={{'n': 1.0}})",
    "contributions_are_finite_scalars": "return LossResult({'a': Contribution(xp.sum(outputs['logprobs'], axis=1))})",
}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("check", BROKEN_LOSSES)
def test_broken_loss_fails_its_check(plugin: Write, check: str) -> None:
    results = _loss(plugin, BROKEN_LOSSES[check])
    assert check in _failed(results), results


def test_loss_that_writes_into_its_input_fails(plugin: Write) -> None:
    body = f"outputs['logprobs'][0] = 0.0\nreturn LossResult({{'a': Contribution({SUM})}})"
    assert "evaluation_is_repeatable" in _failed(_loss(plugin, body))


def test_a_gradient_is_what_is_declared_of_it(plugin: Write) -> None:
    check = "gradient_is_in_proportion_as_declared"
    good, other, squared = (
        f"return LossResult({{'a': Contribution({total})}})"
        for total in (SUM, "-xp.sum(outputs['logprobs'])", "xp.sum(outputs['logprobs'] ** 2 * data.fields['weights'])")
    )
    (passed,) = [result for result in _loss(plugin, good, field="weights") if result.check == check]
    assert passed.status == "passed"
    assert _failed(_loss(plugin, other, field="weights")) == {check}
    assert check in _failed(_loss(plugin, squared, field="weights"))


def test_step_loss_may_carry_numbers_only(plugin: Write) -> None:
    good = f"return LossResult({{'a': Contribution({SUM})}}, state={{'n': state.get('n', 0.0) + 1.0}})"
    assert not failures(_loss(plugin, good, "step"))
    bad = f"return LossResult({{'a': Contribution({SUM})}}, state={{'n': outputs['logprobs'][0, 0] * float('nan')}})"
    assert _failed(_loss(plugin, bad, "step")) >= {"state_keeps_the_rule"}


def test_message_says_called_got_and_expected(plugin: Write) -> None:
    results = _loss(plugin, BROKEN_LOSSES["parts_sum_to_the_whole"])
    (result,) = [result for result in results if result.check == "parts_sum_to_the_whole"]
    assert result.subject == "loss:tried"
    for word in ("called:", "got:", "expected:", "over 6 parts"):
        assert word in result.message


# --- modules and entries ----------------------------------------------------------------------------------------------

REWARD = """
@hookimpl
def ft_rewards():
    yield Reward(name="NAME", build="{me}_parts:build", summary="SUMMARY", example=EXAMPLE)
"""


def _reward(write: Write, parts: str, *, name: str = "kind", summary: str = "polite", example: str = "{}") -> set[str]:
    hooks = REWARD.replace("NAME", name).replace("SUMMARY", summary).replace("EXAMPLE", example)
    return _failed(_run(write(hooks, parts)))


ZEROS = "lambda prompts, completions, columns: [0.0 for _ in completions]"
GOOD = f"""
def build(options: NoOptions, context: Context):
    return {ZEROS}
"""


def test_good_reward_passes(plugin: Write) -> None:
    assert _reward(plugin, GOOD) == set()


def test_a_reward_may_be_asynchronous(plugin: Write) -> None:
    lines = ["class Slow:", "    async def __call__(self, prompts, completions, columns):", "        return SCORES"]
    text = "\n".join(["", *lines, "", "def build(options: NoOptions, context: Context):", "    return Slow()", ""])
    assert _reward(plugin, text.replace("SCORES", "[0.0 for _ in completions]")) == set()
    assert _reward(plugin, text.replace("SCORES", "[0.0]")) == {"scores_are_numbers_or_none"}


def test_entry_faults(plugin: Write) -> None:
    assert "name_is_well_formed" in _reward(plugin, GOOD, name="Kind Words")
    assert "has_a_summary" in _reward(plugin, GOOD, summary="")
    assert "builder_resolves" in _reward(plugin, "")
    assert "builder_resolves" in _reward(plugin, f"def build(options: NoOptions, more): return {ZEROS}")
    assert not _reward(plugin, f"def build(context): return {ZEROS}")
    assert "builder_resolves" in _reward(plugin, "import no_such_package_anywhere" + GOOD)
    assert "options_are_an_options_model" in _reward(plugin, f"def build(options: dict, context): return {ZEROS}")
    assert "options_are_an_options_model" in _reward(plugin, f"def build(options, context): return {ZEROS}")
    assert "example_options_validate" in _reward(plugin, GOOD, example="{'weight': 2}")
    place = "from pathlib import Path\nclass O(Options):\n    place: Path = Path('here')\n"
    assert "example_options_validate" in _reward(plugin, place + GOOD.replace("NoOptions", "O"))
    nothing = "def build(options: NoOptions, context: Context):\n    return None"
    assert "builds_without_global_randomness" in _reward(plugin, nothing)
    dice = f"import random\ndef build(options: NoOptions, context: Context):\n    random.random()\n    return {ZEROS}"
    assert "builds_without_global_randomness" in _reward(plugin, dice)


OPTIONS = """
class Choices(Options):
    strength: float = 1.0
    {doc}

def build(options: Choices, context: Context):
    return lambda prompts, completions, columns: [options.strength for _ in completions]
"""


def test_options_must_be_documented(plugin: Write) -> None:
    assert _reward(plugin, OPTIONS.replace("{doc}", '"""How much it counts."""')) == set()
    assert "options_are_documented" in _reward(plugin, OPTIONS.replace("{doc}", ""))
    loose = OPTIONS.replace("{doc}", '"""How much."""\n    model_config = {"extra": "allow"}')
    assert "options_refuse_unknown_keys_and_change" in _reward(plugin, loose)


@pytest.mark.parametrize("name", ["name", "weight", "label"])
def test_an_option_that_no_recipe_can_set_is_refused(plugin: Write, name: str) -> None:
    """`name` picks the entry, and a reward's weight and label stand in the same mapping."""
    parts = OPTIONS.replace("strength", name).replace("{doc}", '"""How much it counts."""')
    assert _reward(plugin, parts) == {"options_can_be_set"}


REQUIRED = OPTIONS.replace("float = 1.0", "float").replace("{doc}", '"""How much it counts."""')


def test_required_options_need_an_example_or_are_skipped(plugin: Write) -> None:
    hooks = REWARD.replace("NAME", "kind").replace("SUMMARY", "polite")
    results = _run(plugin(hooks.replace("EXAMPLE", "{}"), REQUIRED))
    assert not failures(results)
    assert any(r.status == "skipped" and "strength" in r.message for r in results)
    results = _run(plugin(hooks.replace("EXAMPLE", "{'strength': 2.0}"), REQUIRED))
    assert {r.status for r in results} == {"passed"}


@pytest.mark.parametrize(
    "body",
    [
        "[0.0]",
        "[float('nan') for _ in completions]",
        "['good' for _ in completions]",
        "[float(len(completions)) for _ in completions]",
        "[float(id(object()) % 1000 + next(N)) for _ in completions]",
    ],
)
def test_broken_reward_fails(plugin: Write, body: str) -> None:
    parts = GOOD.replace("[0.0 for _ in completions]", body)
    assert "scores_are_numbers_or_none" in _reward(plugin, "import itertools\nN = itertools.count()\n" + parts)


@pytest.mark.parametrize(
    ("hooks", "check"),
    [
        ("import numpy\n", "imports_nothing_heavy"),
        ("@hookimpl\ndef ft_lossess():\n    return []\n", "hooks_exist_and_are_marked"),
        ("def ft_losses():\n    return []\n", "hooks_exist_and_are_marked"),
        ("@hookimpl\ndef ft_step(run, loss):\n    pass\n", "hooks_exist_and_are_marked"),
        ("@hookimpl\ndef ft_losses():\n    return [{'name': 'a'}]\n", "yields_entries_of_the_right_type"),
        ("@hookimpl\ndef ft_losses():\n    yield Reward(name='a', build='a:b')\n", "yields_entries_of_the_right_type"),
        ("@hookimpl\ndef ft_losses():\n    raise RuntimeError('broken')\n", "imports"),
        ("import no_such_package_anywhere\n", "imports"),
        (
            "@hookimpl\ndef ft_losses():\n    return [Loss(name='a', build='a:b'), Loss(name='a', build='c:d')]\n",
            "names_are_unique",
        ),
    ],
)
def test_broken_module_fails(plugin: Write, hooks: str, check: str) -> None:
    results = run_checks(plugin(hooks))
    (result,) = [result for result in failures(results) if result.check == check]
    assert result.subject.startswith("plugin:under_test_")


def test_misspelt_hook_is_told_the_nearest(plugin: Write) -> None:
    results = run_checks(plugin("@hookimpl\ndef ft_lossess():\n    return []\n"))
    assert "ft_losses" in failures(results)[0].message


def test_optional_hook_may_be_unknown(plugin: Write) -> None:
    assert not failures(run_checks(plugin("@hookimpl(optionalhook=True)\ndef ft_future():\n    return []\n")))


def test_missing_module_is_a_failed_check() -> None:
    (result,) = run_checks("no_such_plugin_anywhere.plugin")
    assert (result.check, result.status) == ("imports", "failed")
    assert "ModuleNotFoundError" in result.message


# --- how the kit is used ----------------------------------------------------------------------------------------------


def _broken_module(write: Write) -> str:
    return write(
        LOSS.replace("TOGETHER", "sequence"), BUILD + "def loss(outputs, data, state):\n    raise ValueError('no')\n"
    )


def test_expected_failures_are_told_from_failures(plugin: Write) -> None:
    module = _broken_module(plugin)
    names = _failed(run_checks(module))
    results = run_checks(module, expected_failures=dict.fromkeys(names, "known"))
    assert not failures(results)
    assert {r.check for r in results if r.status == "expected_failure"} == names
    one = sorted(names)[0]
    left = _failed(run_checks(module, expected_failures={f"loss:tried-{one}": "known"}))
    assert left == names - {one}


def test_expected_failure_that_passes_is_a_failure(plugin: Write) -> None:
    (result,) = failures(run_checks(_good(plugin), expected_failures={"order_does_not_matter": "once it failed"}))
    assert "expected to fail" in result.message


def _good(write: Write) -> str:
    body = f"    return LossResult({{'a': Contribution({SUM})}}, state=state)\n"
    return write(LOSS.replace("TOGETHER", "sequence"), BUILD + "def loss(outputs, data, state):\n" + body)


@pytest.mark.parametrize(("name", "reason"), [("no_such_check", "why"), ("order_does_not_matter", " ")])
def test_expected_failures_are_checked(plugin: Write, name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=name):
        collect(_good(plugin), expected_failures={name: reason})


@pytest.mark.parametrize(
    ("reads", "declares", "names"),
    [
        ('data.fields["advantages"]', "fields={'advantages'}", ""),
        ('data.fields["advantages"]', "fields=()", "['advantages']"),
        ('data.scalars["label"][:, None]', "scalars={'label', 'margin'}", ""),
        ('data.scalars["label"][:, None]', "fields={'label'}", "['label']"),
    ],
)
def test_a_loss_reads_what_its_entry_declares(plugin: Write, reads: str, declares: str, names: str) -> None:
    body = f"""
def loss(outputs, data, state):
    each = xp.where(data.mask, outputs["logprobs"] * {reads}, 0.0)
    return LossResult({{'a': Contribution(xp.sum(each))}}, state=state)
"""
    module = plugin(LOSS.replace("TOGETHER", "sequence").replace('"a loss"', f'"a loss", {declares}'), BUILD + body)
    found = {r.check: r.message for r in failures(run_checks(module))}
    assert set(found) == ({"reads_what_it_declares"} if names else set())
    assert names in found.get("reads_what_it_declares", "")


def test_entries_can_be_given_alone(plugin: Write) -> None:
    entry = Loss(name="alone", build=f"{_good(plugin)}_parts:build", summary="alone")
    results = run_checks(entry)
    assert not failures(results) and {r.subject for r in results} == {"loss:alone"}


def test_parametrize_names_each_test(plugin: Write) -> None:
    mark = parametrize_with_checks(_good(plugin), expected_failures={"mlx_agrees_with_numpy": "no MLX here"}).mark
    assert mark.args[0] == "check"
    by_id = {parameter.id: parameter for parameter in mark.args[1]}
    assert "loss:tried-masked_targets_do_not_matter" in by_id
    (xfail,) = by_id["loss:tried-mlx_agrees_with_numpy"].marks
    assert xfail.name == "xfail" and xfail.kwargs == {"reason": "no MLX here", "strict": True}
    by_id["loss:tried-masked_targets_do_not_matter"].values[0]()


def test_checks_are_documented(plugin: Write) -> None:
    from finetooth_hooks import ENTRY_TYPES
    from finetooth_kit.checks import checks_for

    assert run_checks(_good(plugin))
    for kind in ENTRY_TYPES:
        functions = checks_for(kind)
        general = {function.__module__ for function in functions[:3]}
        assert {function.__module__ for function in functions} != general or kind == "command", kind
        assert all(function.__doc__ for function in functions)
