"""The kit tested, kind by kind: a sound plugin passes, and each broken one fails the check that is about its fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from finetooth_kit import CheckResult, collect, failures, run_check

Write = Callable[..., str]


def _run(module: str) -> list[CheckResult]:
    """All checks but the one that starts a process of its own."""
    return [run_check(check) for check in collect(module) if check.name != "imports_nothing_heavy"]


def _failed(results: list[CheckResult]) -> set[str]:
    return {result.check for result in failures(results)}


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
    several = kind if kind == "hardware" else f"{kind}s"
    hooks = HOOKS.replace("KINDs", several).replace("CLASS", kind.capitalize())
    return _failed(_run(write(hooks, parts + TRIED)))


SCHEDULE = """
class Tried(OptimizerBase):
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
from finetooth_hooks import TrackerBase
class Tried(TrackerBase):
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
        ('"a"', "str(report.loss)", "run.state['x'] = 1", set()),
        ('"a"', "str(report.loss)", "run.state['x'] = {1}", {"tracker_lives_through_a_run"}),
        ('"a"', "f'{run.step / run.total_steps}'", "pass", {"tracker_lives_through_a_run"}),
    ],
)
def test_trackers(plugin: Write, mode: str, text: str, end: str, failed: set[str]) -> None:
    parts = TRACKER.replace("MODE", mode).replace("TEXT", text).replace("END", end)
    assert _kind(plugin, "tracker", parts) == failed


def test_trackers_that_go_on(plugin: Write) -> None:
    parts = TRACKER.replace("MODE", '"a"').replace("TEXT", "'x'").replace("END", "pass")
    says = '    capabilities = frozenset({"resume"})\n'
    sound = parts + says + "    def resume(self, run, history): self.start(run)\n"
    assert _kind(plugin, "tracker", sound) == set()
    closed = (
        parts + says + "    def resume(self, run, history): self.file.close()\n"
    )  # there is none in another process
    assert _kind(plugin, "tracker", closed) == {"tracker_goes_on_from_a_history"}


SOURCE = """
import itertools
COUNT = itertools.count()
from finetooth_hooks import SourceBase
class Tried(SourceBase):
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


PORTIONS = """
    capabilities = frozenset({"portions"})
    def portions(self): yield Portion(b"", (0,))
    def read(self, portion): yield from list(self.rows())[:COUNT]
    def refusal(self, broken, good): return broken.first[0]
"""


def test_what_a_source_says_it_can_do(plugin: Write) -> None:
    plain = SOURCE.replace("ID", "f'a:{i}'").replace("TEXT", "'x'")
    portions = "from finetooth_hooks.protocols import Portion\n" + plain + PORTIONS
    assert _kind(plugin, "source", portions.replace("[:COUNT]", "[:3]")) == set()
    assert _kind(plugin, "source", portions.replace("[:COUNT]", "[:2]")) == {"portions_are_the_rows"}
    says = {"says_what_it_can_do"}
    assert _kind(plugin, "source", plain.replace("Tried(SourceBase)", "Tried")) == says
    assert _kind(plugin, "source", plain + "    capabilities = frozenset({'telepathy'})\n") == says
    silent = portions.replace("[:COUNT]", "[:3]").replace("    capabilities", "    words")
    assert _kind(plugin, "source", silent) == says


RENDERER = """
from finetooth_kit import PlainRenderer
from finetooth_hooks import RendererBase
class Tried(RendererBase):
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
from finetooth_methods.batched import Batches, train_step
from finetooth_rows.preparing import prepare
from finetooth_hooks import MethodBase
class Tried(MethodBase):
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
    both = {"restored_method_goes_on", "state_after_a_failed_step_is_behind_its_data"}
    assert _kind(plugin, "method", forgetful) == both
    late = METHOD.replace("yield train_step(", "report = train_step(").replace(
        "    def state(self): return self.batches.state()",
        "            self.kept = self.batches.state()\n            yield report\n    def state(self): return self.kept",
    )
    assert _kind(plugin, "method", late) == {"state_after_a_failed_step_is_behind_its_data"}
    short = METHOD.replace("for batch in self.batches:", "for batch in list(self.batches)[:1]:")
    assert "each_item_is_one_step" in _kind(plugin, "method", short)


EVALUATOR = """
from finetooth_hooks import EvaluatorBase
class Tried(EvaluatorBase):
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
from finetooth_hooks import OptimizerBase
class Leaky(torch.optim.SGD):
    seen = 0
    def step(self, closure=None):
        self.seen += 1
        for group in self.param_groups:
            group["lr"] = 0.1 / self.seen if LEAKY else 0.1
            SIGN
        super().step(closure)
class Tried(OptimizerBase):
    learning_rate = 0.1
    def create(self, named): return Leaky([p for n, p in named if FILTER], lr=0.1, momentum=0.9)
"""


@pytest.mark.parametrize(
    ("leaky", "chosen", "sign", "failed"),
    [
        ("False", "True", "pass", set()),
        ("True", "True", "pass", {"restored_optimizer_continues"}),
        ("False", "'bias' not in n", "pass", {"every_parameter_is_updated"}),
        ("False", "True", "group['maximize'] = True", {"steps_go_downhill"}),
    ],
)
def test_optimizers(plugin: Write, leaky: str, chosen: str, sign: str, failed: set[str]) -> None:
    parts = OPTIMIZER.replace("LEAKY", leaky).replace("FILTER", chosen).replace("SIGN", sign)
    assert _kind(plugin, "optimizer", parts) == failed


ADAPTER = """
import torch
from finetooth_hooks import AdapterBase
class Tried(AdapterBase):
    def trained_parameters(self, facts, parameters): return parameters if ALL else facts.hidden_size
    def apply(self, model, facts, generator):
        if not ALL:
            model.requires_grad_(False)
            model.register_parameter("unused", torch.nn.Parameter(torch.zeros(facts.hidden_size)))
        return model
    def export(self, model, folder, info): raise NotImplementedError
    def restore(self, model, folder): raise NotImplementedError
"""


@pytest.mark.parametrize(("whole", "reached"), [("True", True), ("False", False)])
def test_parameters_that_nothing_reads_are_noticed(plugin: Write, whole: str, reached: bool) -> None:
    """They are counted as trained, and no gradient reaches them."""
    failed = _kind(plugin, "adapter", ADAPTER.replace("ALL", whole))
    assert ("trained_parameters_reach_the_logits" not in failed) == reached, failed
    assert "trained_parameters_are_counted" not in failed


GROUPED = """
import torch
from finetooth_hooks import OptimizerBase
class Tried(OptimizerBase):
    learning_rate = 0.1
    def create(self, named):
        rest = [p for n, p in named[1:]]
        return torch.optim.SGD([{"params": [named[0][1]], "lr": FIRST}, {"params": rest, "lr": 0.01}])
"""


@pytest.mark.parametrize(("first", "failed"), [("0.1", set()), ("0.3", {"rates_of_groups_are_shares_of_the_rate"})])
def test_optimizers_with_rates_of_groups(plugin: Write, first: str, failed: set[str]) -> None:
    assert _kind(plugin, "optimizer", GROUPED.replace("FIRST", first)) == failed


BACKEND = """
from finetooth_kit import FakeEngine
class Tried(OptimizerBase):
    def plan(self, request): ...
    def engine(self, request): return FakeEngine(request.text.tokenizer)
def build(options: NoOptions, context: Context):
    return Tried()
"""
BACKENDS = """
@hookimpl
def ft_backends():
    yield Backend(name="tried", build="{me}_parts:build", summary="tried", framework="FRAMEWORK",
                  capabilities=frozenset(), remote=REMOTE)
"""


def _backend(write: Write, framework: str = "torch", remote: bool = False) -> list[CheckResult]:
    hooks = "from finetooth_hooks import Backend\n" + BACKENDS.replace("FRAMEWORK", framework)
    return _run(write(hooks.replace("REMOTE", str(remote)), BACKEND))


def test_backends_are_tried_with_an_engine(plugin: Write) -> None:
    """An engine that learns nothing fails what is about learning; an entry of another framework, or of a server, is
    not tried, and that is said."""
    pytest.importorskip("torch")
    assert "step_changes_the_weights" in _failed(_backend(plugin))
    for given, why in (({"framework": "numpy"}, "use parametrize_engine"), ({"remote": True}, "at a server")):
        results = _backend(plugin, **given)  # type: ignore[arg-type]
        assert not failures(results)
        skipped = {result.check: result.message for result in results if result.status == "skipped"}
        assert why in skipped["step_changes_the_weights"]


ON_POLICY = """
from finetooth_hooks import MethodBase
from finetooth_methods.batched import Batches, train_step
class Tried(MethodBase):
    def prepare(self):
        self.tasks = []
        for id_, row in self.context.examples("train").rows:
            if not isinstance(row, Task):
                raise DataError(id_, f"{row.called}, and only tasks are taken")
            self.tasks.append((id_, self.context.renderer.prompt(row.prompt), row.columns["answer"]))
        self.batches = Batches.of(len(self.tasks), self.context.train)
        report = DataReport("train", rows=len(self.tasks), used=len(self.tasks))
        return Prepared(self.batches.total_steps, self.batches.steps_per_epoch, report)
    def steps(self, engine):
        loss = self.context.loss("weighted", setting="method")
        for indices in self.batches:
            chosen = [self.tasks[i] for i in indices]
            found = engine.generate([prompt for _, prompt, _ in chosen], Sampling(max_tokens=4, seed=SEED))
            data = []
            for (id_, prompt, answer), (said,) in zip(chosen, found, strict=True):
                weights = [0.0] * len(prompt) + [1.0 + (said.text == answer)] * len(said.tokens)
                data.append(Datum.from_tokens([*prompt, *said.tokens], weights, id=id_))
            yield train_step(engine, data, loss, self.batches.epoch)
    def state(self): return self.batches.state()
    def restore(self, state): self.batches.restore(state)
"""


def test_methods_that_only_take_tasks(plugin: Write) -> None:
    """One that samples its answers itself passes on the kit's tasks; with dice outside its state it fails."""
    assert _kind(plugin, "method", ON_POLICY.replace("SEED", "self.batches.step")) == set()
    dice = "import itertools\nDICE = itertools.count()\n" + ON_POLICY.replace("SEED", "next(DICE)")
    assert "restored_method_goes_on" in _kind(plugin, "method", dice)


HARDWARE = """
import itertools
from finetooth_hooks.protocols import Device, HardwareFacts
COUNT = itertools.count()
class Tried:
    def missing(self): return ""
    def facts(self):
        other = next(COUNT)
        of = {"memory": 2**30, "available": 2**20, "label": "tried"} | {"CHANGES": OTHER}
        return HardwareFacts("tried", (Device("tried", **of),), ("fp32",), host_available=2**20 + other)
"""


@pytest.mark.parametrize(
    ("changes", "other", "failed"),
    [
        ("available", "2**20 - other", set()),  # somebody else on the machine took a little
        ("memory", "2**30 + other", {"facts_or_a_reason"}),
        ("label", "str(other)", {"facts_or_a_reason"}),
    ],
)
def test_what_hardware_says_of_itself(plugin: Write, changes: str, other: str, failed: set[str]) -> None:
    assert _kind(plugin, "hardware", HARDWARE.replace("CHANGES", changes).replace("OTHER", other)) == failed
