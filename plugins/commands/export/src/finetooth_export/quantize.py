"""`ft quantize`: store a run or a model in fewer bits, and measure what that costs."""

from __future__ import annotations

from pathlib import Path

import click
from finetooth_hooks.context import CommandContext
from finetooth_hooks.errors import UserError
from finetooth_saving.exporting import export, export_model

from finetooth_export.command import show


@click.command("quantize")
@click.argument("reference", metavar="RUN_OR_MODEL")
@click.argument("options", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--to", "exporter", required=True, metavar="FORMAT", help="int8, int4, mxfp4, gptq, gguf, ...")
@click.option("--data", metavar="DATA", help="Rows that a model is calibrated and measured on; a run has its own.")
@click.option("--output", type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--bound", type=click.FloatRange(min=0), default=0.05, show_default=True,
    help="How much worse than before the loss, or the run's own measurement, may become.",
)  # fmt: skip
@click.pass_obj
def command(
    context: CommandContext, reference: str, options: tuple[str, ...], exporter: str, data: str | None,
    output: Path | None, bound: float,
) -> None:  # fmt: skip
    """Store RUN_OR_MODEL in fewer bits, and measure the loss of quality.

    RUN_OR_MODEL is a run by its folder or its name under runs/, or a model as a recipe names it. FORMAT is an exporter
    (ft plugins list --kind exporter), KEY=VALUE an option of it. Before and after, a run is measured with its own
    evaluators, a model by its loss on the rows of --data. A result that is worse by more than --bound is not kept. It
    is written to the folder MODEL-FORMAT, or to exports/FORMAT in the run's folder.
    """
    pick = context.pick(exporter, options)
    if context.run_folder(reference) is not None:
        if data is not None:
            raise UserError("--data: a run is measured on its own held-out rows", action="leave --data out")
        target, exported = export(context, reference, pick, output, bound=bound)
        show(target, exported, f"quantized {reference} to {exporter}")
        return
    context.build("exporter", pick, setting="--to")  # before anything is measured
    if data is None:
        raise UserError(
            f"{reference} is not a run, so the command needs rows to measure its loss on", action="set --data FILE"
        )
    target = output or Path(f"{Path(reference).name}-{exporter}")
    if target.exists():
        raise UserError(f"--output: {target} exists", action="name another folder with --output; nothing was changed")
    before = _loss(context, reference, data)

    def measure(written: Path) -> str:
        after = _loss(context, str(written), data)
        comparison = f"loss: {before:.4f} before, {after:.4f} after"
        if not after - before <= bound:
            raise UserError(
                f"{comparison}: worse by {after - before:.4f}, and --bound is {bound:g}; nothing was kept",
                action="choose a format or options with more bits, or raise --bound",
            )
        return comparison

    exported = export_model(
        context, reference, pick, str(Path(data).absolute()) if Path(data).exists() else data, target, measure
    )
    show(target, exported, f"quantized {reference} to {exporter}")


def _loss(context: CommandContext, reference: str, data: str) -> float:
    """The mean loss of a model over rows."""
    (evaluation,) = context.evaluate(reference, ["loss"], data)
    return float(evaluation.metrics["loss"])
