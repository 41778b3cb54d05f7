"""The hookspecs: all hooks that a plugin may implement.

**Registration hooks** are called once at start and yield typed entries; one hook per kind. **Event hooks** observe a
run and return nothing; an exception in one fails the run (exit 1) if the user named the plugin, else it warns.
`raise StopRun(...)` ends the run cleanly. Hook arguments are only ever added, and an implementation may leave out
those it does not need.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from finetooth_hooks.entries import (
    Adapter,
    Attention,
    Backend,
    Command,
    Environment,
    Evaluator,
    Exporter,
    Face,
    Family,
    Format,
    Gate,
    Hardware,
    Kernel,
    Launcher,
    Loader,
    Loss,
    Method,
    Optimizer,
    Page,
    Processor,
    Quantizer,
    ReleaseGate,
    Renderer,
    Reward,
    Sampler,
    Schedule,
    Source,
    Store,
    Strategy,
    Tracker,
)
from finetooth_hooks.markers import hookspec

if TYPE_CHECKING:
    from pathlib import Path

    from finetooth_hooks.checkpoints import Candidate
    from finetooth_hooks.reports import Evaluation, Outcome, StepReport
    from finetooth_hooks.rollouts import Rollout
    from finetooth_hooks.run import Run


@hookspec
def ft_loaders() -> Iterable[Loader]:  # type: ignore[empty-body]
    """Yield loaders, which find a base model by its reference and load it.

    Example:
        @hookimpl
        def ft_loaders():
            yield Loader(name="gguf", build="acme.loader:Gguf", claims=lambda ref: Claim(2, "a .gguf file") if
            ref.endswith(".gguf") else None)
    """


@hookspec
def ft_sources() -> Iterable[Source]:  # type: ignore[empty-body]
    """Yield sources, which read rows of data.

    Example:
        @hookimpl
        def ft_sources():
            yield Source(name="tickets", build="acme.tickets:Tickets", summary="rows of the ticket database")
    """


@hookspec
def ft_formats() -> Iterable[Format]:  # type: ignore[empty-body]
    """Yield formats, which turn a row into an example (messages, a text, a prompt with its completion).

    Example:
        @hookimpl
        def ft_formats():
            yield Format(name="tickets", build="acme.tickets:TicketFormat", rank=50)
    """


@hookspec
def ft_renderers() -> Iterable[Renderer]:  # type: ignore[empty-body]
    """Yield renderers, which turn messages into tokens with loss weights, and tokens back into messages.

    Example:
        @hookimpl
        def ft_renderers():
            yield Renderer(name="chatml", build="acme.chatml:ChatML")
    """


@hookspec
def ft_processors() -> Iterable[Processor]:  # type: ignore[empty-body]
    """Yield processors, which turn images, sounds and videos into placeholder tokens and the numbers that the model
    reads.

    Example:
        @hookimpl
        def ft_processors():
            yield Processor(name="acme", build="acme.processor:Images")
    """


@hookspec
def ft_families() -> Iterable[Family]:  # type: ignore[empty-body]
    """Yield model families: module names, head, renderer and stop tokens.

    Example:
        @hookimpl
        def ft_families():
            yield Family(name="acme", build="acme.family:Acme", model_types=frozenset({"acme"}))
    """


@hookspec
def ft_methods() -> Iterable[Method]:  # type: ignore[empty-body]
    """Yield methods, which turn examples into data and drive the engine.

    Example:
        @hookimpl
        def ft_methods():
            yield Method(name="sft", build="acme.sft:Sft", summary="supervised fine-tuning", default=True)
    """


@hookspec
def ft_losses() -> Iterable[Loss]:  # type: ignore[empty-body]
    """Yield losses, plain functions that compute contributions from outputs.

    Example:
        @hookimpl
        def ft_losses():
            yield Loss(name="dpo", build="acme.dpo:build", needs={"logprobs", "logprobs@reference"}, together="group")
    """


@hookspec
def ft_rewards() -> Iterable[Reward]:  # type: ignore[empty-body]
    """Yield rewards, which score completions.

    Example:
        @hookimpl
        def ft_rewards():
            yield Reward(name="politeness", build="acme.rewards:Politeness", summary="share of polite words")
    """


@hookspec
def ft_samplers() -> Iterable[Sampler]:  # type: ignore[empty-body]
    """Yield samplers, which produce the rollouts that a policy learns from.

    Example:
        @hookimpl
        def ft_samplers():
            yield Sampler(name="acme", build="acme.sampler:AcmeSampler", summary="a server of Acme's")
    """


@hookspec
def ft_environments() -> Iterable[Environment]:  # type: ignore[empty-body]
    """Yield environments, which answer a policy's turns and score them.

    Example:
        @hookimpl
        def ft_environments():
            yield Environment(name="acme", build="acme.environment:Game", summary="a game of Acme's")
    """


@hookspec
def ft_adapters() -> Iterable[Adapter]:  # type: ignore[empty-body]
    """Yield adapters, which decide which parameters train.

    Example:
        @hookimpl
        def ft_adapters():
            yield Adapter(name="lora", build="acme.lora:Lora", can_disable=True, default=True)
    """


@hookspec
def ft_quantizers() -> Iterable[Quantizer]:  # type: ignore[empty-body]
    """Yield quantizers, which store the weights of a frozen base in fewer bits.

    Example:
        @hookimpl
        def ft_quantizers():
            yield Quantizer(name="int8", build="acme.int8:Int8", summary="8 bits a weight, a scale a row")
    """


@hookspec
def ft_optimizers() -> Iterable[Optimizer]:  # type: ignore[empty-body]
    """Yield optimizers.

    Example:
        @hookimpl
        def ft_optimizers():
            yield Optimizer(name="adamw", build="acme.adamw:AdamW", default=True)
    """


@hookspec
def ft_schedules() -> Iterable[Schedule]:  # type: ignore[empty-body]
    """Yield learning-rate schedules.

    Example:
        @hookimpl
        def ft_schedules():
            yield Schedule(name="constant", build="acme.schedules:Constant", default=True)
    """


@hookspec
def ft_backends() -> Iterable[Backend]:  # type: ignore[empty-body]
    """Yield backends, which build an engine from a plan.

    Example:
        @hookimpl
        def ft_backends():
            yield Backend(name="numpy", build="acme.engine:NumpyBackend", framework="numpy",
            capabilities=frozenset({"handles"}))
    """


@hookspec
def ft_hardware() -> Iterable[Hardware]:  # type: ignore[empty-body]
    """Yield hardware: kinds of devices, with a check whether they are available and with their abilities.

    Example:
        @hookimpl
        def ft_hardware():
            yield Hardware(name="cpu", build="acme.cpu:Cpu", rank=0)
    """


@hookspec
def ft_strategies() -> Iterable[Strategy]:  # type: ignore[empty-body]
    """Yield strategies, which spread one engine over ranks.

    Example:
        @hookimpl
        def ft_strategies():
            yield Strategy(name="counted", build="acme.counted:Counted", summary="counts what ddp sends")
    """


@hookspec
def ft_launchers() -> Iterable[Launcher]:  # type: ignore[empty-body]
    """Yield launchers, which start ranks, and tell each started process its rank.

    Example:
        @hookimpl
        def ft_launchers():
            yield Launcher(name="cluster", build="acme.cluster:Cluster", here=lambda: "ACME_RANK" in os.environ)
    """


@hookspec
def ft_attention() -> Iterable[Attention]:  # type: ignore[empty-body]
    """Yield implementations of attention, each with its supported devices, types and shapes.

    Example:
        @hookimpl
        def ft_attention():
            serves = AttentionServes(devices=frozenset({"cpu", "cuda"}), precisions=frozenset({"fp32"}), window=True)
            yield Attention(name="acme", build="acme.attention:build", summary="row by row", serves=serves)
    """


@hookspec
def ft_kernels() -> Iterable[Kernel]:  # type: ignore[empty-body]
    """Yield providers of kernels: ways to compute named operations, such as the head's log-probabilities.

    Example:
        @hookimpl
        def ft_kernels():
            yield Kernel(name="acme", build="acme.kernels:build", serves=(Serves(operation="rms_norm", rank=30),))
    """


@hookspec
def ft_trackers() -> Iterable[Tracker]:  # type: ignore[empty-body]
    """Yield trackers, which record steps and evaluations.

    Example:
        @hookimpl
        def ft_trackers():
            yield Tracker(name="csv", build="acme.csv:CsvTracker", summary="metrics.csv in the run folder")
    """


@hookspec
def ft_evaluators() -> Iterable[Evaluator]:  # type: ignore[empty-body]
    """Yield evaluators, which measure the engine on held-out examples.

    Example:
        @hookimpl
        def ft_evaluators():
            yield Evaluator(name="loss", build="acme.loss:LossEvaluator", default=True)
    """


@hookspec
def ft_exporters() -> Iterable[Exporter]:  # type: ignore[empty-body]
    """Yield exporters, which write a trained model for another tool.

    Example:
        @hookimpl
        def ft_exporters():
            yield Exporter(name="acme", build="acme.exporter:AcmeExporter", summary="what Acme's server loads")
    """


@hookspec
def ft_stores() -> Iterable[Store]:  # type: ignore[empty-body]
    """Yield stores, which keep checkpoints in memory, on disk or on another machine.

    Example:
        @hookimpl
        def ft_stores():
            yield Store(name="tape", build="acme.tape:Tape", tier="remote", summary="checkpoints on tape")
    """


@hookspec
def ft_gates() -> Iterable[Gate]:  # type: ignore[empty-body]
    """Yield gates: checks that a checkpoint must pass before it is promoted.

    Example:
        @hookimpl
        def ft_gates():
            yield Gate(name="polite", build="acme.gates:Polite", summary="the model still says please")
    """


@hookspec
def ft_faces() -> Iterable[Face]:  # type: ignore[empty-body]
    """Yield faces: protocols under which a server offers its models to clients.

    Example:
        @hookimpl
        def ft_faces():
            yield Face(name="acme", build="acme.face:AcmeFace", summary="for clients that speak Acme's protocol")
    """


@hookspec
def ft_release_gates() -> Iterable[ReleaseGate]:  # type: ignore[empty-body]
    """Yield release gates: checks that a version must pass before it enters a channel of a registry.

    Example:
        @hookimpl
        def ft_release_gates():
            yield ReleaseGate(name="polite", build="acme.release:Polite", summary="answers say please as before")
    """


@hookspec
def ft_pages() -> Iterable[Page]:  # type: ignore[empty-body]
    """Yield pages of the board, which `ft board` serves to a browser.

    Example:
        @hookimpl
        def ft_pages():
            yield Page(name="costs", build="acme.costs:Costs", title="Costs", summary="what the runs have cost")
    """


@hookspec
def ft_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """Yield commands of `ft`.

    Example:
        @hookimpl
        def ft_commands():
            yield Command(name="merge", build="acme.merge:command", summary="merge an adapter into its base")
    """


@hookspec
def ft_run_start(run: Run) -> None:
    """A run is about to train: the plan is decided, the engine is built, the run folder exists.

    Example:
        @hookimpl
        def ft_run_start(run):
            run.state["best"] = 0.0
    """


@hookspec
def ft_step(run: Run, report: StepReport) -> None:
    """An optimizer step is done.

    Example:
        @hookimpl
        def ft_step(run, report):
            if report.loss > 20:
                raise StopRun(f"loss {report.loss:.1f} at step {report.step}", exit_code=3)
    """


@hookspec
def ft_rollouts_scored(run: Run, rollouts: Sequence[Rollout]) -> None:
    """A step has learned from new rollouts, each with its rewards, its advantages and the log-probabilities at which
    its tokens were sampled. Called before `ft_step` of that step, and not for a step that learns from the same rollouts
    again.

    Example:
        @hookimpl
        def ft_rollouts_scored(run, rollouts):
            if all(rollout.outcome == "length" for rollout in rollouts):
                raise StopRun("every answer was cut off", exit_code=3)
    """


@hookspec
def ft_evaluated(run: Run, evaluation: Evaluation) -> None:
    """An evaluation is done.

    Example:
        @hookimpl
        def ft_evaluated(run, evaluation):
            run.state["score"] = evaluation.metrics["exact_match"]
    """


@hookspec
def ft_promote(run: Run, candidate: Candidate) -> str | None:
    """Decide whether to promote a checkpoint that has passed every gate: None for yes, or the reason against it. A
    refused checkpoint goes into quarantine with the reason, and is neither the latest nor the best.

    Called from the thread that saves, while training continues: look at the files and metrics of the candidate, not at
    the engine.

    Example:
        @hookimpl
        def ft_promote(run, candidate):
            if candidate.metrics.get("eval/loss", 0.0) > 4.0:
                return "the held-out loss is above 4"
    """


@hookspec
def ft_checkpoint_saved(run: Run, path: Path) -> None:
    """A checkpoint or the final artifact is in place, complete, under `path`.

    Example:
        @hookimpl
        def ft_checkpoint_saved(run, path):
            upload(path)
    """


@hookspec
def ft_run_end(run: Run, outcome: Outcome) -> None:
    """A run has ended: done, stopped, interrupted or failed. An exception that is raised here can no longer change the
    trained weights, but `StopRun` still sets the exit code.

    Example:
        @hookimpl
        def ft_run_end(run, outcome):
            if outcome.status == "done" and outcome.metrics["exact_match"] < run.options.min_score:
                raise StopRun("below the agreed score", exit_code=4)
    """


REGISTRATION_HOOKS = {
    "ft_loaders": Loader, "ft_sources": Source, "ft_formats": Format, "ft_renderers": Renderer,
    "ft_processors": Processor, "ft_families": Family, "ft_methods": Method, "ft_losses": Loss, "ft_rewards": Reward,
    "ft_samplers": Sampler, "ft_environments": Environment, "ft_adapters": Adapter, "ft_quantizers": Quantizer,
    "ft_optimizers": Optimizer, "ft_schedules": Schedule, "ft_backends": Backend, "ft_hardware": Hardware,
    "ft_strategies": Strategy, "ft_launchers": Launcher, "ft_attention": Attention, "ft_kernels": Kernel,
    "ft_trackers": Tracker, "ft_evaluators": Evaluator, "ft_exporters": Exporter, "ft_stores": Store,
    "ft_gates": Gate, "ft_faces": Face, "ft_release_gates": ReleaseGate, "ft_pages": Page,
    "ft_commands": Command,
}  # fmt: skip
"""Registration hooks and the entry type each must yield."""

EVENT_HOOKS = (
    "ft_run_start",
    "ft_rollouts_scored",
    "ft_step",
    "ft_evaluated",
    "ft_promote",
    "ft_checkpoint_saved",
    "ft_run_end",
)
"""Event hooks, in the order in which a run fires them. Only `ft_promote` decides: it may return a reason."""
