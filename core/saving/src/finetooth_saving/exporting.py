"""Writes a trained model for another tool: the source for exporters, and the folder that they fill."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from finetooth_hooks.context import CommandContext, Context
from finetooth_hooks.errors import FinetoothError, UserError
from finetooth_hooks.exporters import Exported
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Exporter, ModelInfo
from finetooth_toolbox import blame
from finetooth_toolbox.cli.working import working
from finetooth_toolbox.messages.shipped import carry
from finetooth_toolbox.text.measures import size

from finetooth_saving.artifact import write_folder
from finetooth_saving.model_card import model_card
from finetooth_saving.origins import as_written, origin_of, read_origin
from finetooth_saving.run_folder import RECIPE, artifact_of, check_output, is_whole, no_such_run
from finetooth_saving.run_recipe import with_picks, without_training

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CARD = "README.md"


class TrainedRun:
    """Implements `finetooth_hooks.ExportSource`.

    Args:
        run: its folder.
        commands: reads the run's recipe, and makes contexts.
        scratch: an empty folder on the disk of the export.

    Raises:
        UserError: the run has no artifact, a file of it is damaged, or its base has changed.
    """

    def __init__(self, run: Path, commands: CommandContext, scratch: Path) -> None:
        from finetooth_toolbox.files.trained_over import check_base

        from finetooth_saving.artifact import verify_folder

        self.run, self.scratch, self._context = run, scratch, commands.context
        self.artifact = artifact_of(run)
        self.adapter = not is_whole(self.artifact)
        self._written = commands.load(run / RECIPE)
        self._recipe = with_picks(run, self._written)
        verify_folder(self.artifact)
        if self.adapter:
            check_base(self.artifact, self.base, own=True)

    @cached_property
    def context(self) -> Context:
        """The context of a recipe whose model is the run; a quantised base needs the run's own backend, which reads
        it."""
        data = {"renderer": self._recipe.get("data", {}).get("renderer", "auto")}
        plugins = {"plugins": self._recipe["plugins"]} if "plugins" in self._recipe else {}
        in_bits = self._recipe.get("quantization") is not None or self.base.stored is not None
        own = self.adapter and in_bits and "backend" in self._recipe
        backend = {"backend": self._recipe["backend"]} if own else {}
        return self._context({"model": str(self.run), "data": data, **plugins, **backend})

    @cached_property
    def base(self) -> ModelInfo:
        """The run's base model."""
        return self._context(without_training(self._recipe)).model

    @cached_property
    def card(self) -> str:
        """The model card."""
        return model_card(self.run, self._written, self.base, adapter=self.adapter)

    def weights(self, precision: str, *, folder: Path | None = None) -> Path:
        """See `ExportSource.weights`."""
        target = folder or self.scratch / f"weights-{precision}"
        fresh = not (target / "config.json").is_file()
        _weights(self.context, str(self.run), precision, target)
        if fresh:
            carry(self.artifact, target)
        return target


class BareModel:
    """Implements `finetooth_hooks.ExportSource` for a model that no run trained.

    Args:
        reference: of the model, as a recipe names it.
        rows: rows with which the exporter may calibrate.
        scratch: an empty folder on the disk of the export.
    """

    adapter = False

    def __init__(self, reference: str, rows: Pick, commands: CommandContext, scratch: Path) -> None:
        self.scratch, self._reference = scratch, reference
        self.run = self.artifact = scratch / (Path(reference).name or "model")
        self.run.mkdir()
        recipe = {"model": reference, "data": {"train": rows}}
        (self.run / RECIPE).write_text(json.dumps(recipe), encoding="utf-8")  # JSON is valid YAML
        self.context = commands.context(recipe)
        self.card = f"# {self.run.name}\n\nThe weights of {reference}, stored in another format.\n"

    def weights(self, precision: str, *, folder: Path | None = None) -> Path:
        """See `ExportSource.weights`."""
        return _weights(self.context, self._reference, precision, folder or self.scratch / f"weights-{precision}")


def _weights(context: Context, reference: str, precision: str, target: Path) -> Path:
    """A model's weights in a folder; writes them unless they exist there.

    Raises:
        UserError: the disk lacks space.
    """
    if (target / "config.json").is_file():
        return target
    needed, free = context.model.parameters * BYTES[precision], shutil.disk_usage(target.parent).free
    if needed > free:
        raise UserError(
            f"{target.parent} has {size(free)} free, and the model takes {size(needed)}",
            action="make room, or set --output to another disk",
        )
    with working(f"writing the weights in {precision}"):
        context.loader.write(reference, target, precision=precision)
    return target


@contextmanager
def scratch_of(output: Path) -> Iterator[Path]:
    """A temporary folder on the disk of an output, deleted afterwards.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise UserError(
            f"--output: {output} cannot be written: {error.strerror}", action="name another folder with --output"
        ) from error
    with made as scratch:
        yield Path(scratch)


def export_model(
    commands: CommandContext, reference: str, pick: Pick, rows: Pick, output: Path, measure: Callable[[Path], str]
) -> Exported:
    """Write a model that no run trained in another format, complete or not at all.

    Args:
        reference: of the model, as a recipe names it.
        rows: what the exporter may calibrate with.
        output: the folder to write.
        measure: checks the written model and returns its findings; if it raises an error, no files remain.

    Raises:
        UserError: the exporter does not support this model, or `measure` refuses it.
    """
    name = pick if isinstance(pick, str) else str(pick["name"])
    exporter: Exporter = commands.build("exporter", pick, setting="--to")
    exported: list[Exported] = []
    with working(f"writing {output}"), scratch_of(output) as scratch:
        source = BareModel(reference, rows, commands, scratch)
        exporter.check(source)

        def fill(folder: Path) -> None:
            made = exporter.export(source, folder)
            comparison = measure(folder if made.model == "." else folder / made.model)
            exported.append(dataclasses.replace(made, checks=(*made.checks, comparison)))
            (folder / CARD).write_text(source.card, encoding="utf-8")

        origin = read_origin(Path(reference)) if Path(reference).is_dir() else None
        write_folder(output, fill, {"kind": "export", "exporter": name, "model": reference, **as_written(origin)})
    return exported[0]


def export(
    commands: CommandContext, reference: str, pick: Pick, output: Path | None = None, *, replace: bool = False,
    bound: float | None = None,
) -> tuple[Path, Exported]:  # fmt: skip
    """Write a run's trained model, complete or not at all.

    Args:
        commands: builds the exporter, and contexts.
        reference: a run by its folder or its name.
        pick: the exporter, with its options.
        output: the folder to write; None: `exports/NAME` in the run folder.
        replace: replace existing files once the export is complete.
        bound: how much worse the written model may be by the run's own evaluator; None: it is not measured.

    Raises:
        UserError: the run or the exporter does not exist, the artifact is damaged, `output` exists, the exporter does
            not support this model, or the written model is worse by more than the bound.
    """
    name = pick if isinstance(pick, str) else str(pick["name"])
    run = commands.run_folder(reference)
    if run is None:
        raise no_such_run(reference)
    check_output(reference, output)
    exporter: Exporter = commands.build("exporter", pick, setting="--to")
    target = output or run / "exports" / name.rpartition(":")[2]
    if target.exists() and not replace:
        raise UserError(f"--output: {target} exists", action="name another folder with --output; nothing was changed")
    exported: list[Exported] = []
    with scratch_of(target) as scratch:
        source = TrainedRun(run, commands, scratch)
        exporter.check(source)

        def fill(folder: Path) -> None:
            made = exporter.export(source, folder)
            if bound is not None:
                made = dataclasses.replace(made, checks=(*made.checks, _measured(commands, run, folder, made, bound)))
            exported.append(made)
            (folder / CARD).write_text(source.card, encoding="utf-8")

        about = {"kind": "export", "exporter": name, "run": run.name, "model": source.base.reference}
        write_folder(target, fill, about | as_written(origin_of(source.artifact)), replace=replace)
    return target, exported[0]


def _measured(commands: CommandContext, run: Path, folder: Path, made: Exported, bound: float) -> str:
    """The result of the run's own evaluator, as text.

    Raises:
        UserError: the written model is worse by more than the bound, or cannot be measured.
    """
    from finetooth_saving.runs.written_models import compare

    if not made.model:
        return "not measured: the exporter wrote parts of a model, not a whole one"
    written = folder if made.model == "." else folder / made.model
    action = "choose an exporter or options that keep more, or raise --bound"
    try:
        return compare(commands, run, commands.load(run / RECIPE), written, bound, action=action)
    except UserError:
        raise
    except FinetoothError as error:
        raise UserError(
            f"the written model cannot be measured: {error}", action="skip the measurement: --unmeasured"
        ) from error


def export_all(commands: CommandContext, run: Path, picks: Sequence[Pick], say: Callable[[str], None]) -> None:
    """Write all exports in a recipe's `export` after its run has ended. They replace those of an earlier end of the
    run.

    Args:
        run: its folder.
        say: receives one line per export.

    Raises:
        UserError, EngineError: the first one that failed, after all others were tried.
    """
    failed: FinetoothError | None = None
    taken: set[str] = set()
    for index, pick in enumerate(picks):
        name = (pick if isinstance(pick, str) else str(pick["name"])).rpartition(":")[2]
        place = name if name not in taken else f"{name}-{index + 1}"
        taken.add(place)
        target = run / "exports" / place
        try:
            with working(f"exporting to {name}"):
                _, exported = export(commands, str(run), pick, target, replace=True)
        except (Exception, SystemExit) as error:
            failed = failed or UserError(
                f"export.{index}: training succeeded, but {name} cannot be written: {blame.named(error)}",
                action=f"correct that, then: ft export {run} --to {name}",
            )
            continue
        say(f"exported to {target}" + (f": {exported.use.format(folder=target)}" if exported.use else ""))
    if failed is not None:
        raise failed
