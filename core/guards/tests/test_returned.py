"""What a plugin returns is checked where it crosses: whatever the kind, the plugin is named, with its file and line."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_core.plugins.builders import derived
from finetooth_core.plugins.suspects import with_suspects
from finetooth_guards.returned import METHODS
from finetooth_hooks import NotFinite, PluginError
from finetooth_hooks.bases import BASES
from finetooth_hooks.compute.losses import Contribution, LossResult
from finetooth_hooks.data.examples import Rendered
from finetooth_hooks.entries import ENTRY_TYPES
from finetooth_hooks.environments import Answer, Observation
from finetooth_hooks.exporters import Exported
from finetooth_hooks.protocols import HardwareFacts, Head, ModelFacts
from finetooth_hooks.reports import DataReport, Evaluation, Prepared, StepReport
from finetooth_toolbox import blame

NOT_ASKED = {"reward", "command"}
"""Kinds that are checked elsewhere (a reward), or return nothing to anybody."""
WRONG = {"none": None, "text": "good", "number": 3, "nan": float("nan"), "nested": [[None]]}
RIGHT = {
    ("adapter", "trained_parameters"): {"number"}, ("adapter", "low_rank"): {"none"}, ("adapter", "export"): set(WRONG),
    **{
        ("adapter", name): {"number"}
        for name in ("held_bytes", "kept_bytes", "token_bytes", "beginning_bytes", "rate_factor")
    },
    ("evaluator", "prepare"): {"none"}, ("hardware", "missing"): {"text"}, ("schedule", "factor"): {"number"},
    ("format", "detect"): {"none", "text"}, ("format", "read"): {"nested"}, ("gate", "check"): set(WRONG),
    ("launcher", "rank"): {"none"}, ("launcher", "start"): {"number"}, ("store", "names"): {"nested"},
    ("strategy", "digest"): {"text"},
    **{("tracker", name): set(WRONG) for name in ("start", "resume", "step", "evaluated", "end")},
}  # fmt: skip
"""Not told from a right answer; a gate's are looked at by who keeps checkpoints; a tracker's are not read."""

FACTS = ModelFacts(
    *(8, 2, 2, 2, 4, 16, 64, 128), "model.layers", "model", Head(), ("q_proj",), ("q_proj",), "chatml",
    first_loss=(0.02,),  # type: ignore[arg-type]
)  # fmt: skip


def registered(kind: str) -> Any:
    entry = SimpleNamespace(kind=kind, name="mine", build=f"{__name__}:build", transformers="")
    return SimpleNamespace(entry=entry, distribution=f"acme-{kind}", version="1", full_name=f"acme-{kind}:mine")


def made(kind: str, answer: Any) -> Any:
    """A plugin of a kind whose every method gives the same answer."""

    def call(*given: Any, **named: Any) -> Any:
        return answer

    if "" in METHODS[kind]:
        return derived(call, kind, registered(kind))
    body = {name: lambda self, *given, **named: answer for name in METHODS[kind]}
    return derived(type("Mine", (BASES.get(kind, object),), body)(), kind, registered(kind))


@dataclass(frozen=True)
class Array:
    shape: tuple[int, ...]
    dtype: str = "fp32"


def called(built: Any, name: str) -> Any:
    prompts, sampling = ["a", "b"], SimpleNamespace(n=2)
    given = (None, prompts, sampling) if name == "sample" else (Array((2, 4, 8, 16)),) * 3
    out = built(*given) if not name else getattr(built, name)(*given)
    return list(out) if name in ("rows", "read", "portions", "steps") and not isinstance(out, str | list) else out


def test_every_kind_is_checked() -> None:
    assert METHODS.keys() | NOT_ASKED == ENTRY_TYPES.keys()


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in METHODS for name in METHODS[kind]])
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_answer_is_refused_by_plugin_file_and_line(kind: str, name: str, fault: str) -> None:
    built = made(kind, WRONG[fault])
    if fault in RIGHT.get((kind, name), ()):
        called(built, name)
        return
    with pytest.raises(PluginError) as refused:
        called(built, name)
    line = str(refused.value)
    assert line.startswith(f"acme-{kind}: {kind} 'mine'") and f"[{__file__}:" in line and "(" in line
    assert "finetooth" not in line.replace(__file__, "")


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_a_builder_that_returns_nothing_is_refused_by_name(kind: str) -> None:
    with pytest.raises(PluginError, match=rf"^acme-{kind}: .*{kind} 'mine'"):
        derived(None, kind, registered(kind))


def test_shapes_and_counts_are_looked_at() -> None:
    loss = made("loss", LossResult({"x": Contribution(np.ones((2, 3)))}))
    with pytest.raises(PluginError, match=r"acme-loss: .* a total of 'x' of shape \(2, 3\)"):
        called(loss, "")
    loss = made("loss", LossResult({"x": Contribution(np.ones(()), per="weight")}))  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"per 'weight'.*weights"):
        called(loss, "")
    with pytest.raises(PluginError, match=r"acme-attention: .*shape \(2, 8, 4, 16\).*not .*\(2, 4, 8, 16\)"):
        called(made("attention", Array((2, 8, 4, 16))), "")
    with pytest.raises(PluginError, match=r"of shape .* not fp32"):
        called(made("attention", Array((2, 4, 8, 16), "bf16")), "")
    with pytest.raises(PluginError, match="nan"):
        called(made("schedule", float("inf") - float("inf")), "factor")


@pytest.mark.parametrize(("kind", "answer"), [("adapter", None), ("exporter", Exported())])
def test_an_export_writes_something(kind: str, answer: Any, tmp_path: Path) -> None:
    built = made(kind, answer)
    with pytest.raises(PluginError, match=rf"^acme-{kind}: {kind} 'mine': export\(\) wrote no file \[{__file__}:"):
        built.export("source", tmp_path)
    (tmp_path / "weights").touch()
    assert built.export("source", tmp_path) is answer


@pytest.mark.parametrize(
    ("kind", "name", "value", "field"),
    [
        ("method", "prepare", Prepared(3, 3, DataReport("train", 1, 1, length_deviation=math.nan)),
         "Prepared whose report.length_deviation is nan"),
        ("hardware", "facts", HardwareFacts("x", (), (), peak_flops={"bf16": math.inf}),
         "HardwareFacts whose peak_flops.bf16 is inf"),
        ("family", "facts", FACTS, r"ModelFacts whose first_loss is \(0.02,\)"),
        ("hardware", "facts", HardwareFacts("x", (), ()), "HardwareFacts without devices"),
    ],
)  # fmt: skip
def test_numbers_of_parts_are_finite(kind: str, name: str, value: Any, field: str) -> None:
    with pytest.raises(PluginError, match=rf"^acme-{kind}: .* {name}\(\) returned a {field} \[{__file__}:"):
        called(made(kind, value), name)


@pytest.mark.parametrize("changes", [{"loss": math.nan}, {"loss": None}, {"metrics": {"accuracy": "high"}}])
def test_a_report_of_a_step_holds_numbers(changes: dict[str, Any]) -> None:
    report = StepReport(1, 0.5, 1.0, 8, 4, 2, 1e-3, math.inf, metrics={"kl": math.nan})
    assert called(made("method", [report]), "steps") == [report]
    skipped = replace(report, loss=math.inf, skipped=True)
    assert called(made("method", [skipped]), "steps") == [skipped]
    with pytest.raises(PluginError, match=rf"^acme-method: .* yielded a StepReport whose \w+ is .* \[{__file__}:"):
        called(made("method", [replace(report, **changes)]), "steps")


def test_a_rows_weights_are_as_many_as_its_tokens_and_finite() -> None:
    for weights, wrong in (((1.0,), "1 weights for 2 tokens"), ((1.0, float("nan")), "not finite")):
        with pytest.raises(PluginError, match=rf"^acme-renderer: .*{wrong}.* \[.*test_returned\.py:\d+\]"):
            called(made("renderer", Rendered((7, 8), weights)), "render")
    whole = Rendered((7, 8), (0.0, 1.0))
    assert called(made("renderer", whole), "render") is whole


def test_a_metric_is_a_number() -> None:
    with pytest.raises(PluginError, match=r"^acme-evaluator: .* returned None, as metric 'loss'"):
        called(made("evaluator", Evaluation("loss", 1, {"loss": None})), "evaluate")  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
def test_a_metric_without_a_value_is_left_out(value: float) -> None:
    for kind, wrong in (("metric", ({"f1": value},)), ("baseline", ({"f1": 1.0}, {"f1": value}))):
        with pytest.raises(PluginError, match=rf"^acme-evaluator: .* as {kind} 'f1' \[{__file__}:.*leave out a {kind}"):
            called(made("evaluator", Evaluation("mine", 1, *wrong)), "evaluate")


def test_a_tracker_that_would_never_run_is_refused() -> None:
    async def step(run: Any, report: Any) -> None: ...

    def start(run: Any) -> Any:
        yield run

    for name, function in (("step", step), ("start", start)):
        built = derived(
            type("Mine", (BASES["tracker"],), {name: staticmethod(function)})(), "tracker", registered("tracker")
        )
        with pytest.raises(PluginError, match=rf"^acme-tracker: .* {name}\(\) returned a .* never runs \[{__file__}:"):
            getattr(built, name)(None, None) if name == "step" else getattr(built, name)(None)


def test_a_face_gives_an_application_and_what_is_entered() -> None:
    for wrong in ((1, 2), (len,), (len, None)):
        with pytest.raises(PluginError, match="an ASGI application"):
            made("face", wrong).app(None)
    right = len, nullcontext()
    assert made("face", right).app(None) == right


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in METHODS for name in METHODS[kind]])
def test_what_raises_is_blamed_on_its_plugin_alone(kind: str, name: str, tmp_path: Path) -> None:
    """Whatever the kind, through the checks: the plugin, its file and the line that raised."""
    package = f"acme_raises_{kind}"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "plugin.py").write_text("def fail(*given, **named):\n    raise RuntimeError('not today')\n")
    spec = spec_from_file_location(f"{package}.plugin", folder / "plugin.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[f"{package}.plugin"] = module
    mine = SimpleNamespace(distribution=f"acme-{kind}", version="1", module=f"{package}.plugin", entries=())
    try:
        blame.remember([mine])
        if name:
            built: Any = type("Mine", (BASES.get(kind, object),), {name: module.fail})()
        else:
            built = module.fail
        with pytest.raises(RuntimeError) as raised:
            called(derived(built, kind, registered(kind)), name)
        found = blame.blamed(raised.value)
    finally:
        del sys.modules[f"{package}.plugin"]
    assert found is not None
    assert (found.plugin, found.where) == (f"acme-{kind} 1", f"{folder / 'plugin.py'}:2")


def test_what_episodes_say_is_checked_too() -> None:
    class Game:
        answers: Any = None

        def begin(self) -> Any:
            return Observation()

        def answer(self, turn: Any) -> Any:
            return self.answers

        def close(self) -> None: ...

    environment = made("environment", game := Game())
    assert environment.episode(None, 0).begin() == Observation()
    with pytest.raises(PluginError, match=r"acme-environment: .* answer\(\) returned None, not Answer"):
        environment.episode(None, 0).answer(None)
    game.answers = Answer()
    assert environment.episode(None, 0).answer(None) == Answer()
    for wrong in (Answer(reward="high"), Answer(metrics={"moves": None})):  # type: ignore[arg-type, dict-item]
        game.answers = wrong
        with pytest.raises(
            PluginError, match=r"acme-environment: .* answer\(\) returned ('high' as reward|None as moves)"
        ):
            environment.episode(None, 0).answer(None)
    game.answers = Answer(reward=math.nan, metrics={"moves": 2})  # an episode without a reward, and no fault of the run
    assert environment.episode(None, 0).answer(None) is game.answers


def test_what_is_right_passes_as_it_was() -> None:
    @dataclass(frozen=True)
    class Frozen:
        start: float

        def factor(self, step: int, total: int | None) -> float:
            return self.start / (step + 1)

    built = derived(Frozen(2.0), "schedule", registered("schedule"))
    assert built.factor(1, total=None) == 1.0 and isinstance(built, Frozen) and type(built).__name__ == "Frozen"
    again = derived(built, "schedule", registered("schedule"))
    assert type(again) is type(built)


def test_a_method_that_is_replaced_in_its_class_is_the_one_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flat:
        def factor(self, step: int, total: int | None) -> Any:
            return 1.0

    built = derived(Flat(), "schedule", registered("schedule"))
    monkeypatch.setattr(Flat, "factor", lambda self, step, total: 2.0)
    assert built.factor(0, None) == derived(Flat(), "schedule", registered("schedule")).factor(0, None) == 2.0
    monkeypatch.setattr(Flat, "factor", lambda self, step, total: "much")
    with pytest.raises(PluginError, match=r"acme-schedule: .*a finite number"):
        built.factor(0, None)


def test_a_number_that_is_not_finite_names_who_computes_beside_us() -> None:
    index = {"optimizer": {"adamw": ["finetooth-optimizers"]}, "loss": {"ce": ["finetooth-sft"]}}

    def using(*used: Any) -> Any:
        return SimpleNamespace(builder=SimpleNamespace(used=used, catalog=SimpleNamespace(index=index)))

    ours = SimpleNamespace(entry=SimpleNamespace(kind="loss", name="ce"), distribution="finetooth-sft")
    error = NotFinite("loss is nan at step 2", action="lower it", rows=("a:1",))
    assert with_suspects(error, using(ours)) is error
    told = with_suspects(error, using(ours, registered("optimizer"), registered("tracker")))
    assert str(told) == (
        "loss is nan at step 2; computed with optimizer 'mine' of acme-optimizer (try without it first; lower it)"
    )
