"""The kit tested: good plugins pass everything, and each broken one fails the check that is about its fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from finetooth_hooks import Loss
from finetooth_hooks.testing import CheckResult, collect, failures, parametrize_with_checks, run_check, run_checks

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


def _loss(write: Write, body: str, together: str = "sequence") -> list[CheckResult]:
    function = "def loss(outputs, data, state):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    return _run(write(LOSS.replace("TOGETHER", together), BUILD + function))


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


def test_entry_faults(plugin: Write) -> None:
    assert "name_is_well_formed" in _reward(plugin, GOOD, name="Kind Words")
    assert "has_a_summary" in _reward(plugin, GOOD, summary="")
    assert "builder_resolves" in _reward(plugin, "")
    assert "builder_resolves" in _reward(plugin, f"def build(context): return {ZEROS}")
    assert "builder_resolves" in _reward(plugin, "import no_such_package_anywhere" + GOOD)
    assert "options_are_an_options_model" in _reward(plugin, f"def build(options: dict, context): return {ZEROS}")
    assert "options_are_an_options_model" in _reward(plugin, f"def build(options, context): return {ZEROS}")
    assert "example_options_validate" in _reward(plugin, GOOD, example="{'weight': 2}")
    nothing = "def build(options: NoOptions, context: Context):\n    return None"
    assert "builds_without_global_randomness" in _reward(plugin, nothing)
    dice = f"import random\ndef build(options: NoOptions, context: Context):\n    random.random()\n    return {ZEROS}"
    assert "builds_without_global_randomness" in _reward(plugin, dice)


OPTIONS = """
class Choices(Options):
    weight: float = 1.0
    {doc}

def build(options: Choices, context: Context):
    return lambda prompts, completions, columns: [options.weight for _ in completions]
"""


def test_options_must_be_documented(plugin: Write) -> None:
    assert _reward(plugin, OPTIONS.replace("{doc}", '"""How much it counts."""')) == set()
    assert "options_are_documented" in _reward(plugin, OPTIONS.replace("{doc}", ""))
    loose = OPTIONS.replace("{doc}", '"""How much."""\n    model_config = {"extra": "allow"}')
    assert "options_refuse_unknown_keys_and_change" in _reward(plugin, loose)


REQUIRED = OPTIONS.replace("float = 1.0", "float").replace("{doc}", '"""How much it counts."""')


def test_required_options_need_an_example_or_are_skipped(plugin: Write) -> None:
    hooks = REWARD.replace("NAME", "kind").replace("SUMMARY", "polite")
    results = _run(plugin(hooks.replace("EXAMPLE", "{}"), REQUIRED))
    assert not failures(results)
    assert any(r.status == "skipped" and "weight" in r.message for r in results)
    results = _run(plugin(hooks.replace("EXAMPLE", "{'weight': 2.0}"), REQUIRED))
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


# --- other kinds ------------------------------------------------------------------------------------------------------

HOOKS = """
@hookimpl
def ft_KINDs():
    yield CLASS(name="tried", build="{me}_parts:build", summary="tried")
"""


TRIED = """
def build(options: NoOptions, context: Context):
    made = Tried()
    made.context = context
    return made
"""


def _kind(write: Write, kind: str, parts: str) -> set[str]:
    hooks = HOOKS.replace("KIND", kind).replace("CLASS", kind.capitalize())
    return _failed(_run(write(hooks, parts + TRIED)))


SCHEDULE = """
class Tried:
    def __init__(self): self.seen = 0
    def factor(self, step, total): return FACTOR
    def observe(self, metrics): self.seen += metrics["loss"] > 1.05
    def state(self): return {"seen": self.seen}
    def restore(self, state): RESTORE
"""


@pytest.mark.parametrize(
    ("factor", "restore", "failed"),
    [
        ("0.9 ** self.seen", "self.seen = state['seen']", set()),
        ("0.9 ** self.seen", "pass", {"restored_schedule_continues"}),
        ("1 - step", "pass", {"factors_are_finite_and_positive", "unknown_total_is_taken_or_refused"}),
        ("0.0", "pass", {"factors_are_finite_and_positive"}),
    ],
)
def test_schedules(plugin: Write, factor: str, restore: str, failed: set[str]) -> None:
    assert _kind(plugin, "schedule", SCHEDULE.replace("FACTOR", factor).replace("RESTORE", restore)) == failed


TRACKER = """
import json
class Tried:
    def start(self, run): self.file = open(run.folder / "steps.txt", MODE)
    def step(self, run, report): self.file.write(TEXT)
    def evaluated(self, run, evaluation): pass
    def end(self, run, outcome): self.file.close(); END
"""


@pytest.mark.parametrize(
    ("mode", "text", "end", "failed"),
    [
        ('"a"', "str(report.loss)", "pass", set()),
        ('"x"', "str(report.loss)", "pass", {"tracker_continues_a_resumed_run"}),
        ('"a"', "json.dumps(report.loss, allow_nan=False)", "pass", {"tracker_lives_through_a_run"}),
        ('"a"', "str(report.loss)", "run.state['x'] = 1", {"tracker_lives_through_a_run"}),
        ('"a"', "f'{run.step / run.total_steps}'", "pass", {"tracker_lives_through_a_run"}),
    ],
)
def test_trackers(plugin: Write, mode: str, text: str, end: str, failed: set[str]) -> None:
    parts = TRACKER.replace("MODE", mode).replace("TEXT", text).replace("END", end)
    assert _kind(plugin, "tracker", parts) == failed


SOURCE = """
import itertools
COUNT = itertools.count()
class Tried:
    def rows(self):
        for i in range(3):
            yield Row(ID, {"text": TEXT})
"""


@pytest.mark.parametrize(
    ("id_", "text", "broken"),
    [("f'a:{i}'", "'x'", False), ("'a'", "'x'", True), ("f'a:{i}'", "str(next(COUNT))", True)],
)
def test_sources(plugin: Write, id_: str, text: str, broken: bool) -> None:
    wanted = {"rows_repeat_with_unique_ids"} if broken else set()
    assert _kind(plugin, "source", SOURCE.replace("ID", id_).replace("TEXT", text)) == wanted


RENDERER = """
from finetooth_hooks.testing import PlainRenderer
class Tried:
    def __getattr__(self, name): return getattr(PlainRenderer(self.context.tokenizer), name)
"""


@pytest.mark.parametrize(
    ("extra", "check"),
    [
        ("", ""),
        ("    def prompt(self, m, tools=()): return (1, 2)", "prompt_is_a_prefix"),
        ("    def parse(self, t): return Parsed(Message('assistant', ''), 'stop')", "parse_reads_back"),
        (
            "    def render(self, c, *, train_on='assistant'):\n"
            "        r = PlainRenderer(self.context.tokenizer).render(c, train_on='all')\n"
            "        return Rendered(r.tokens, r.weights, r.spans)",
            "only_trained_messages_weigh",
        ),
        (
            "    def render(self, c, *, train_on='assistant'):\n"
            "        r = PlainRenderer(self.context.tokenizer).render(c, train_on=train_on)\n"
            "        return Rendered(r.tokens, r.weights[1:])",
            "weights_match_tokens",
        ),
    ],
)
def test_renderers(plugin: Write, extra: str, check: str) -> None:
    failed = _kind(plugin, "renderer", RENDERER + extra)
    assert check in failed if check else failed == set()


METHOD = """
from finetooth_hooks.preparation import Batches, prepare, train_step
class Tried:
    def prepare(self):
        done = prepare(self.context.examples("train"), self.context.renderer.render, self.context.train)
        self.data, self.batches = done.data, Batches.of(len(done.data), self.context.train)
        return Prepared(self.batches.total_steps, self.batches.steps_per_epoch, done.report)
    def steps(self, engine):
        loss = self.context.loss("cross_entropy")
        for batch in self.batches:
            yield train_step(engine, [self.data[i] for i in batch], loss, self.batches.epoch)
    def state(self): return self.batches.state()
    def restore(self, state): self.batches.restore(state)
"""


def test_methods(plugin: Write) -> None:
    assert _kind(plugin, "method", METHOD) == set()
    forgetful = METHOD.replace("self.batches.restore(state)", "pass")
    assert _kind(plugin, "method", forgetful) == {"restored_method_goes_on"}
    short = METHOD.replace("for batch in self.batches:", "for batch in list(self.batches)[:1]:")
    assert "each_item_is_one_step" in _kind(plugin, "method", short)


EVALUATOR = """
class Tried:
    def prepare(self): return None
    def evaluate(self, engine, step):
        data = [Datum.from_tokens([1, 2, 3])]
        EXTRA
        return Evaluation("tried", STEP, {"loss": VALUE}, rows=1)
"""


@pytest.mark.parametrize(
    ("extra", "step", "value", "broken"),
    [
        ("pass", "step", "float(-engine.logprobs(data)[0].mean())", False),
        ("engine.forward_backward(data, self.context.loss('x'))", "step", "1.0", True),
        ("pass", "0", "1.0", True),
        ("pass", "step", "float('nan')", True),
        ("self.n = getattr(self, 'n', 0) + 1", "step", "float(self.n)", True),
    ],
)
def test_evaluators(plugin: Write, extra: str, step: str, value: str, broken: bool) -> None:
    parts = EVALUATOR.replace("EXTRA", extra).replace("STEP", step).replace("VALUE", value)
    wanted = {"evaluation_is_repeatable_and_harmless"} if broken else set()
    assert _kind(plugin, "evaluator", parts) == wanted


OPTIMIZER = """
import torch
class Leaky(torch.optim.SGD):
    seen = 0
    def step(self, closure=None):
        self.seen += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.seen if LEAKY else 0.1
        super().step(closure)
class Tried:
    learning_rate = 0.1
    def create(self, named): return Leaky([p for n, p in named if FILTER], lr=0.1, momentum=0.9)
"""


@pytest.mark.parametrize(
    ("leaky", "chosen", "failed"),
    [
        ("False", "True", set()),
        ("True", "True", {"restored_optimizer_continues"}),
        ("False", "'bias' not in n", {"every_parameter_is_updated"}),
    ],
)
def test_optimizers(plugin: Write, leaky: str, chosen: str, failed: set[str]) -> None:
    parts = OPTIMIZER.replace("LEAKY", leaky).replace("FILTER", chosen)
    assert _kind(plugin, "optimizer", parts) == failed


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
    from finetooth_hooks.testing.checks import checks_for

    assert run_checks(_good(plugin))
    for kind in ENTRY_TYPES:
        functions = checks_for(kind)
        general = {function.__module__ for function in functions[:3]}
        assert {function.__module__ for function in functions} != general or kind == "command", kind
        assert all(function.__doc__ for function in functions)
