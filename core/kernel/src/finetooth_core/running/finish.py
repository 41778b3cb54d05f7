"""Ends a run: saves the weights, calls trackers and plugins, and writes result.json."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import EngineError, FinetoothError, StopRun
from finetooth_hooks.reports import DataReport, Outcome
from finetooth_rows import openings
from finetooth_saving.artifact import check_room, write_folder, write_json
from finetooth_saving.keeper import BestKept
from finetooth_saving.learned_templates import template_of
from finetooth_saving.names import newest_first
from finetooth_saving.retention import Best, is_better
from finetooth_saving.room import once_there_is_room
from finetooth_toolbox import blame
from finetooth_toolbox.messages.openings import Opening
from finetooth_toolbox.messages.shipped import ship

from finetooth_core.running.live_run import LiveRun
from finetooth_core.running.run_ending import Ending, failed, result


class Finish:
    """The end of a run.

    Args:
        run: its steps have ended.
    """

    def __init__(self, run: LiveRun) -> None:
        self.run = run
        self.selected: Path | None = None  # the checkpoint in the engine, instead of the last step's weights
        self.at_all = False  # every rank has come to the end of its steps

    def keep(self, ending: Ending) -> tuple[Path | None, Ending]:
        """Save the last state and the artifact, also after a failed step, which has not changed the weights. If a rank
        with a part of them is lost, neither can be written."""
        self.at_all = ending.status == "done"
        if not self.run.progress.step or self.run.keeper.cannot_save(ending.error):
            return None, ending
        trained, target, signal = ending, self.run.job.context.folder / "artifact", self.run.interrupt.signal
        alike, seconds = self.run.keeper.alike, self.run.job.context.recipe.checkpoint.wait_for_room
        ending = self.keep_state(trained, at_all=self.at_all)
        waits = ending.error is not None and blame.is_full(ending.error)
        waits = waits and not alike.all(self.run.checkpoint_folder.is_dir())
        ending = trained if waits and trained.error is None else ending
        try:
            with alike.last_stops(at_all=self.at_all):
                ending = once_there_is_room(
                    partial(self.save_artifact, target, ending), alike, seconds,
                    lambda: self.run.interrupt.signal != signal, self.run.say,
                )  # fmt: skip
                self.run.events.fire("ft_checkpoint_saved", path=target)
            ending = self.keep_state(ending) if waits else ending
        except StopRun as stop:  # raised by a hook that got the artifact: it is in place
            return target, ending.stopped(stop)
        except Exception as error:
            if ending.error is not None:
                self.run.say(f"the trained weights could not be saved: {failed(error).reason}")
            self.keep_unwritten()
            return target if target.exists() else None, ending if ending.error else failed(error)
        return target, ending

    def keep_state(self, ending: Ending, *, at_all: bool = False) -> Ending:
        """Save the last whole step: if checkpoints are kept, and always if a run ends early or fails, so that nothing
        is lost. A step that changed weights and then failed is not whole. An error at only one of several ranks ends it
        at once, since the others would not save with it.

        Args:
            at_all: see `Alike.last_stops`.
        """
        error, keeping = ending.error, self.run.keeper.keeping
        agreed = isinstance(error, EngineError) or self.run.job.request.place.collective is None  # else ranks wait
        whole = error is None or (agreed and self.run.version == self.run.engine.weights_version)
        wanted = whole and (ending.status != "done" or (keeping.cadence and keeping.on_disk))
        unsent, alike = "", self.run.keeper.alike
        try:
            with alike.last_stops(at_all=at_all):
                on_disk = keeping.on_disk or self.run.checkpoint_folder.is_dir()  # and not in memory alone
                if wanted and not (on_disk and self.run.saved_at == self.run.progress.step):
                    if "zero_grad" in self.run.engine.capabilities:
                        self.run.engine.zero_grad()  # of a step that failed, which is taken again
                    self.run.save_checkpoint(folder=True)
                with alike.fails():
                    unsent = self.run.keeper.close()
                self.run.tell_saved()
        except StopRun as stop:
            ending = ending.stopped(stop)
        except Exception as error:
            self.say_what_was_saved()
            if ending.error is None and ending.status != "interrupted":
                return failed(error)
            self.run.say(f"the state after step {self.run.progress.step} could not be saved: {failed(error).reason}")
            return ending
        if unsent and ending.exit_code == 0:
            ending = replace(ending, reason=unsent, exit_code=1)
        if ending.error is not None and self.run.checkpoint_folder.is_dir():
            self.run.say(
                f"the state after step {self.run.progress.step}, the last whole one, is in {self.run.checkpoint_folder}"
            )
        return ending

    def keep_unwritten(self) -> None:
        """Save a checkpoint if writing the artifact failed, so that no training is lost. A selected step is already a
        checkpoint, and then the engine no longer has the last step's weights."""
        if self.selected is not None:
            self.run.say(
                f"the selected checkpoint is not lost: it is in {self.selected}; resume with: ft resume "
                f"{self.run.job.context.folder}"
            )
            return
        folder = self.run.checkpoint_folder
        try:
            if not folder.is_dir():
                self.run.save_checkpoint(folder=True)
                self.run.keeper.close()
                self.run.tell_saved()
        except StopRun:
            pass  # it ends anyway
        except Exception as error:
            self.run.say(
                f"the state after step {self.run.progress.step} could not be saved either: {failed(error).reason}"
            )
            return
        if folder.is_dir():
            self.run.say(
                f"nothing is lost: the state after step {self.run.progress.step} is in {folder}; write the artifact "
                f"with: ft resume {self.run.job.context.folder}"
            )

    def end(self, ending: Ending, artifact: Path | None) -> Ending:
        """Call trackers and plugins. result.json is written even if they raise; a StopRun still sets the exit code of a
        finished run, and saves its state, so that it can be ended again."""
        fire, alike = self.run.events.fire, self.run.keeper.alike
        asks = self.at_all or ending.status == "stopped"
        told: tuple[Callable[[Outcome], object], ...] = (self.run.trackers.end, lambda o: fire("ft_run_end", outcome=o))
        for tell in told:
            try:
                with alike.last_stops(at_all=self.at_all) if asks else nullcontext():
                    tell(self.run.outcome(ending, artifact))
            except StopRun as stop:
                ending = ending.stopped(stop)
            except FinetoothError as error:
                ending = ending if ending.error else failed(error)
        if asks and alike.all(ending.status == "stopped"):
            self.keep_stopped()
        return ending

    def keep_stopped(self) -> None:
        """The state of a run that was stopped when everything else was kept already."""
        step = self.run.progress.step
        if not step or self.run.saved_at == step or self.selected is not None:
            return
        try:
            self.run.save_checkpoint(folder=True)
            self.run.keeper.settle()
        except Exception as error:
            self.run.say(f"the state after step {step} could not be saved: {failed(error).reason}")

    def write_result(self, outcome: Outcome, ending: Ending) -> Ending:
        """Write result.json; a failure to write it never hides the run's own ending."""
        path = self.run.job.context.folder / "result.json"
        try:
            write_json(path, result(outcome, self.run.manifest, self.kept()))
        except OSError as error:
            problem = EngineError(f"{path} cannot be written: {error.strerror or error}", action="make room")
            if ending.error is None and ending.status != "interrupted":
                return failed(problem)
            self.run.say(str(problem))
        return ending

    def save_artifact(self, target: Path, ending: Ending) -> Ending:
        """Write the artifact, in the layout of other tools: of the last step, or of the best checkpoint."""
        step = self.run.progress.step
        best = self.run.keeper.keeping.best
        if self.run.job.context.recipe.checkpoint.select_on is not None and ending.status in ("done", "stopped"):
            assert best is not None  # chosen by `select_on`, if by nothing else
            checkpoint = self.run.keeper.best_kept(best)
            if checkpoint is None:
                ending = self.nothing_to_select(best, ending)
            else:
                step = checkpoint.step
                self.say_what_is_selected(best, checkpoint)
                if step != self.run.progress.step:
                    self.selected = checkpoint.folder
                    self.run.engine.load(checkpoint.folder / "engine")
        base = self.run.job.request.base.model
        stood_on = {"base": dict(base.contents), "base_digest": base.digest}
        about = {**self.run.manifest, **stood_on, "step": step, "kind": "artifact"}
        with self.run.keeper.alike.fails():
            check_room(target)
        write_folder(target, self.fill, about, replace=self.run.again or self.run.artifact_step is not None)
        self.run.artifact_step = step
        return ending

    def fill(self, folder: Path) -> None:
        """Write the weights, and the chat template for other tools."""
        self.run.engine.export(folder)
        job = self.run.job
        data = job.context.data
        counts = data.rows("train").openings if data.has("train") else {}
        if not openings.rows_of_kind(counts, openings.TALK):
            return
        shared = openings.shared(counts) if job.context.recipe.data.opening == "auto" else Opening()
        head = job.request.trains.head
        ends = head is None or head.exported_as == "none"
        text = bool(openings.rows_of_kind(counts, openings.TEXT))
        renderer, tokenizer = job.context.renderer, job.context.tokenizer
        template = template_of(renderer, tokenizer, shared)
        if remark := ship(folder, template, renderer, tokenizer, shared, ends=ends, text=text):
            self.run.say(remark)
        if shared:
            self.run.say(
                f"{shared.rows:,} of {shared.of:,} rows begin with {shared.told()}: chats, services and exports begin "
                "with it too (data.opening: off keeps none)"
            )

    def nothing_to_select(self, best: Best, ending: Ending) -> Ending:
        """The ending of a run whose artifact is not what its recipe asks for."""
        problem = (
            f"checkpoint.select_on: no checkpoint has the metric {best.metric}, measured at its step; the artifact is "
            "of the last step"
        )
        if ending.exit_code == 0 and ending.status == "done":
            return replace(ending, reason=problem, exit_code=1)
        self.run.say(problem)
        return ending

    def say_what_is_selected(self, best: Best, kept: BestKept) -> None:
        """The artifact's step and the reason for it; also whether training only made the model worse."""
        last = self.run.progress.step
        of = f"checkpoint.select_on: the artifact is of step {kept.step}"
        if kept.step != last:
            of += f", not of the last one, {last}"
        self.run.say(f"{of}: the best checkpoint by {best.metric}, {kept.value:.4g}")
        before = self.run.record.measured(0).get(best.metric)
        if before is not None and is_better(before, kept.value, best.mode):
            self.run.say(
                f"{best.metric} was better before the first step, {before:.4g}: no checkpoint is as good as the model "
                "that the run began with"
            )

    def kept(self) -> dict[str, Any]:
        """What result.json says in addition to the outcome."""
        return {
            "rows": [_counts(report) for report in self.run.job.reports],
            "bad_steps": [asdict(bad) for bad in self.run.record.bad_steps],
            "resumed": [asdict(resumption) for resumption in self.run.record.resumed],
            "checkpoints": {"saved": self.run.keeper.saved, "stalled_seconds": round(self.run.keeper.stalled, 6)},
        }

    def say_what_was_saved(self) -> None:
        """Name the newest checkpoint that is in its place."""
        folder = self.run.keeper.keeping.folder
        names = newest_first(path.name for path in folder.iterdir()) if folder.is_dir() else []
        if names:
            run = self.run.job.context.folder
            self.run.say(f"the newest checkpoint that could be written is {names[0]}; resume with: ft resume {run}")

    def what_is_kept(self, artifact: Path | None) -> str:
        """One clause for a run that was interrupted."""
        if not self.run.progress.step:
            return "the run did no step, so nothing is saved"
        if artifact is None:
            return f"what was saved before is in {self.run.job.context.folder}"
        return f"the trained weights are in {artifact}; resume with: ft resume {self.run.job.context.folder}"


def _counts(report: DataReport) -> dict[str, Any]:
    """Counts of a split: rows, used rows, tokens, and dropped rows by reason."""
    names = ("split", "rows", "used", "tokens", "trained_tokens", "longest", "dropped")
    return {name: getattr(report, name) for name in names}
