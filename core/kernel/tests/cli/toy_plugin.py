"""A local plugin that brings a whole toy stack, so that the command line runs without any other plugin: rows of
`question\tanswer`, a bigram "engine" that learns nothing, and an evaluator whose score is the number of steps."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from finetooth_hooks import (
    Adapter,
    Backend,
    Claim,
    EngineError,
    Evaluator,
    Family,
    Format,
    Hardware,
    Loader,
    Loss,
    Method,
    Optimizer,
    Options,
    Renderer,
    Schedule,
    Source,
    StopRun,
    hookimpl,
)
from finetooth_hooks.bases import AdapterBase, EvaluatorBase, LoaderBase, MethodBase, OptimizerBase, SourceBase
from finetooth_toolbox.files.missing import MissingFile

HERE = __name__


class PluginOptions(Options):
    """Of the plugin itself."""

    stop_at: int | None = None
    """End the run after this step with exit code 7."""
    interrupt_at: int | None = None
    """Press Ctrl-C in this step."""


plugin_options = PluginOptions


def reached(point):
    """Kills the process, or fails, at the point that the environment names."""
    if os.environ.get("TOY_KILLED_AT") == point:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("TOY_FAILS_AT") == point:
        raise EngineError(f"the toy breaks at {point}")


class NamedOptions(Options):
    """Of most toys."""

    strength: float = 1.0
    """Means nothing."""


class HardwareOptions(Options):
    """Of the hardware."""

    memory: int = 10**10
    """Bytes that it has."""
    available: int | None = None
    """Bytes of it that are free."""


class BackendOptions(NamedOptions):
    """Of the backend."""

    gradients: int = 0
    """Bytes that they take in its estimate."""


class RowsOptions(Options):
    """Of the source."""

    path: str
    """The file."""


@hookimpl
def ft_loaders():
    yield Loader(
        name="toy",
        build=f"{HERE}:build_loader",
        claims=lambda ref: Claim(2, "the toy") if ref in ("toy", "toys") or ref.endswith("toy_folder") else None,
        names=("toy",),
        frameworks=frozenset({"toy"}),
    )


@hookimpl
def ft_families():
    yield Family(name="toy", build=f"{HERE}:build_family", model_types=frozenset({"toy"}))


@hookimpl
def ft_renderers():
    yield Renderer(name="toy", build=f"{HERE}:build_renderer")


@hookimpl
def ft_sources():
    yield Source(
        name="toy_rows",
        build=f"{HERE}:build_source",
        claims=lambda ref: Claim(2, "a .toy file") if ref.endswith(".toy") else None,
    )


@hookimpl
def ft_formats():
    yield Format(name="toy_pairs", build=f"{HERE}:build_format", rank=0)


@hookimpl
def ft_methods():
    yield Method(name="toy_sft", build=f"{HERE}:build_method")


@hookimpl
def ft_losses():
    yield Loss(name="toy_nll", build=f"{HERE}:build_loss")


@hookimpl
def ft_adapters():
    yield Adapter(name="toy", build=f"{HERE}:build_adapter", frameworks=frozenset({"toy"}))


@hookimpl
def ft_optimizers():
    yield Optimizer(name="toy", build=f"{HERE}:build_part", frameworks=frozenset({"toy"}))


@hookimpl
def ft_schedules():
    yield Schedule(name="toy", build=f"{HERE}:build_part")


@hookimpl
def ft_backends():
    yield Backend(
        name="toy", build=f"{HERE}:build_backend", framework="toy", capabilities=frozenset({"generate", "zero_grad"})
    )


@hookimpl
def ft_hardware():
    yield Hardware(name="toy", build=f"{HERE}:build_hardware", framework="toy")


@hookimpl
def ft_evaluators():
    yield Evaluator(name="toy_score", build=f"{HERE}:build_evaluator", needs=frozenset({"generate"}))


@hookimpl
def ft_step(run, report):
    if run.options.interrupt_at == report.step:
        os.kill(os.getpid(), signal.SIGINT)
    if run.options.stop_at == report.step:
        raise StopRun("the toy has had enough", exit_code=7)


class ToyLoader(LoaderBase):
    def describe(self, reference):
        from finetooth_hooks.protocols import ModelInfo

        return ModelInfo(reference, "toy", "toy", {}, 1000, 4000)

    def tokenizer(self, reference):
        from finetooth_kit import ByteTokenizer

        return ByteTokenizer()


class ToyAdapter(AdapterBase):
    def trained_parameters(self, facts, parameters):
        return 10


class ToyPart(OptimizerBase):
    """An optimizer and a schedule, as far as the core looks at them."""

    learning_rate = 1e-3

    def factor(self, step, total):
        return 1.0

    def observe(self, metrics):
        pass


class ToyRows(SourceBase):
    def __init__(self, path):
        self.path = Path(path)

    def rows(self):
        from finetooth_hooks import DataError, Row

        reached("rows")
        if not self.path.exists():
            raise MissingFile(self.path)
        for number, line in enumerate(self.path.read_text().splitlines(), 1):
            if "\t" not in line:
                raise DataError(f"{self.path}:{number}", "no tab between question and answer", action="add one")
            question, _, answer = line.partition("\t")
            yield Row(f"{self.path.name}:{number}", {"question": question, "answer": answer})


class ToyPairs:
    def detect(self, values):
        return "has question and answer" if {"question", "answer"} <= set(values) else None

    def read(self, row):
        from finetooth_hooks import Conversation, Message

        return Conversation((Message("user", row.values["question"]), Message("assistant", row.values["answer"])))


class ToyMethod(MethodBase):
    def __init__(self, context):
        self.context = context

    def prepare(self):
        from finetooth_hooks import Prepared
        from finetooth_methods.batched import Batches
        from finetooth_rows.preparing import prepare

        made = prepare(self.context.examples("train"), self.context.renderer.render, self.context.train)
        self.data = made.data
        self.batches = Batches.of(len(made.data), self.context.train)
        return Prepared(self.batches.total_steps, self.batches.steps_per_epoch, made.report)

    def steps(self, engine):
        from finetooth_methods.batched import train_step

        loss = self.context.loss("toy_nll")
        for indices in self.batches:
            yield train_step(engine, [self.data[i] for i in indices], loss, self.batches.epoch)

    def state(self):
        return {}

    def restore(self, state):
        pass


class ToyBackend:
    def __init__(self, options, context):
        self.options, self.context = options, context

    def plan(self, request):
        from dataclasses import replace

        from finetooth_hooks import Decision, MemoryEstimate
        from finetooth_hooks.protocols import BackendPlan

        reached("plan")
        train = replace(request.train, precision="fp32", micro_batch_tokens=64, gradient_checkpointing=False)
        reasons = (Decision("train.precision", "fp32", "toys are exact"),)
        parts = {"weights": 4_000_000, "overhead": 1_500_000_000}
        if self.options.gradients:
            parts["gradients"] = self.options.gradients
        return BackendPlan(train, reasons, MemoryEstimate(parts))

    def engine(self, request):
        from finetooth_kit import FakeEngine

        reached("engine")
        return FakeEngine(request.text.tokenizer, request.text.stop_ids)


class ToyHardware:
    def __init__(self, options):
        self.options = options

    def missing(self):
        return ""

    def facts(self):
        from finetooth_hooks.protocols import Device, HardwareFacts

        options = self.options
        return HardwareFacts(
            "toy", (Device("toy", "a toy computer", options.memory, available=options.available),), ("fp32",)
        )


class ToyScore(EvaluatorBase):
    def prepare(self):
        return None

    def evaluate(self, engine, step):
        from finetooth_hooks import Evaluation, Sample

        samples = tuple(
            Sample(f"s{i}", f"Question {i}?", f"right{i}", f"answer{i} at {step}", float(step > 0)) for i in range(4)
        )
        share = min(1.0, step / 4)
        return Evaluation("toy_score", step, {"toy_score": share}, {"majority answer": 0.125}, samples, rows=4)


class ToyFamily:
    def facts(self, config):
        from dataclasses import replace

        from finetooth_kit.fake_context import FACTS

        return replace(FACTS, renderer="toy")


def build_loader(options: NamedOptions, context):
    return ToyLoader()


def build_family(options: NamedOptions, context):
    return ToyFamily()


def build_renderer(options: NamedOptions, context):
    from finetooth_kit import PlainRenderer

    return PlainRenderer(context.tokenizer)


def build_source(options: RowsOptions, context):
    return ToyRows(options.path)


def build_format(options: NamedOptions, context):
    return ToyPairs()


def build_method(options: NamedOptions, context):
    return ToyMethod(context)


def build_loss(options: NamedOptions, context):
    from finetooth_kit.losses import weighted_nll

    return weighted_nll


def build_adapter(options: NamedOptions, context):
    return ToyAdapter()


def build_part(options: NamedOptions, context):
    return ToyPart()


def build_backend(options: BackendOptions, context):
    return ToyBackend(options, context)


def build_hardware(options: HardwareOptions, context):
    return ToyHardware(options)


def build_evaluator(options: NamedOptions, context):
    return ToyScore()
