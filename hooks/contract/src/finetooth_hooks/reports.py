"""What a run reports: data, steps, evaluations, outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks.rollouts import Rollout


@dataclass(frozen=True)
class DataReport:
    """Counts of used, dropped and changed rows of a split, with reasons.

    Attributes:
        split: `train` or `eval`.
        rows: rows read.
        used: data made from them (windows, for pre-training).
        dropped: rows left out, by reason.
        dropped_ids: the first few ids by reason.
        settings: the setting (`train.max_length`) that dropped rows, by reason; a missing reason depends only on the
            data.
        changed: rows kept but altered (truncated), by reason.
        tokens: input positions, which the engine reads and `train.max_length` counts. A row of N + 1 tokens has N of
            them, since its last token is only predicted.
        trained_tokens: targets that count.
        trained_by_role: trained tokens of conversations by the role of their message; empty if unknown.
        longest: positions of the longest datum.
        longest_id: row id of the longest datum; empty to name none.
        bounded_by: the setting that bounds the longest datum, up to `unbounded` positions: `method.NAME`, if the method
            samples answers. A refusal for memory suggests less of it.
        unbounded: positions of the longest datum that it does not bound, such as the longest prompt.
        length_deviation: standard deviation of the data's positions.
        lengths: quantiles of the data's positions at equal shares, from the shortest to the longest, within 5 %; empty
            if unknown.
        beginning: length of the beginning that all compared data share, in positions; 0 if unknown.
        segmented: data hold several segments (`Datum.parents`), which the backend must keep apart.
        notes: sentences for the user.
        examples: number of examples: that of the rows, unless the format makes several of one row; 0 if unknown.
        settled: reasons in `dropped` for which the recipe itself asks to drop rows; a method whose options refuse
            untrainable rows still accepts these.
    """

    split: str
    rows: int
    used: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    dropped_ids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    longest_id: str = ""
    length_deviation: float = 0.0
    lengths: tuple[int, ...] = ()
    beginning: int = 0
    segmented: bool = False
    notes: tuple[str, ...] = ()
    examples: int = 0
    trained_by_role: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    settled: tuple[str, ...] = ()
    bounded_by: str = "train.max_length"
    unbounded: int = 0


@dataclass(frozen=True)
class Prepared:
    """A method's result of preparation, before the engine exists.

    Attributes:
        total_steps: optimizer steps of the whole run; None if unknown.
        steps_per_epoch: optimizer steps in one pass over the data.
        report: on the rows.
    """

    total_steps: int | None
    steps_per_epoch: int
    report: DataReport


@dataclass(frozen=True)
class StepReport:
    """One optimizer step. A method fills the first part, the run loop the times.

    Attributes:
        step: 1-based, counts skipped steps too.
        epoch: passes over the data done, as a fraction.
        loss: normalised over the step.
        tokens: input positions that are not padding.
        targets: targets that counted.
        rows: data in the step.
        learning_rate: the applied one.
        grad_norm: before clipping.
        skipped: the optimizer was not applied (fp16 overflow).
        metrics: further metrics of the loss or the method.
        padding: share of computed positions that were padding.
        seconds: wall time of the step.
        tokens_per_second: over the step.
        memory: peak bytes so far.
        memory_now: bytes after the step.
        flops: floating-point operations that the step executed, padding and recomputation included; 0 if the engine
            does not count them.
        flops_per_second: over the step.
        mfu: model FLOP/s utilisation, `flops_per_second` as a share of the device's peak; 0 if either is unknown.
        samples: a few answers that the step learned from; empty for a method that samples none.
        rollouts: rollouts that were new in this step. The run loop passes them to `ft_rollouts_scored` and drops them:
            no tracker and no history gets them.
    """

    step: int
    epoch: float
    loss: float
    tokens: int
    targets: int
    rows: int
    learning_rate: float
    grad_norm: float
    skipped: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    padding: float = 0.0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    memory: int = 0
    memory_now: int = 0
    flops: float = 0.0
    flops_per_second: float = 0.0
    mfu: float = 0.0
    samples: tuple[Sample, ...] = ()
    rollouts: tuple[Rollout, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One question with the model's answer: of a held-out row, or of one that the model trains on.

    Attributes:
        id: row id.
        prompt: the question, as text.
        expected: the right answer; empty if unknown.
        answer: the model's answer.
        score: 0 to 1 in an evaluation; in a step the reward.
    """

    id: str
    prompt: str
    expected: str
    answer: str
    score: float


@dataclass(frozen=True)
class Evaluation:
    """One evaluation by one evaluator.

    Attributes:
        name: the evaluator.
        step: optimizer steps done; 0 is before training.
        metrics: by name, `exact_match`, `loss`; recorded as `eval/NAME`. Each is finite; leave out metrics without a
            value.
        baselines: scores of trivial answers by name (`majority answer`), in the unit of the evaluator's first metric.
        samples: some questions with answers, the same ones at every evaluation.
        rows: number of measured examples.
        higher_is_better: for the first metric.
        settings: settings that affect answers, as JSON values: `template` (a prompt with `{question}` for the
            question), `stop` (texts that end an answer), `max_tokens`; empty if it asks no questions.
    """

    name: str
    step: int
    metrics: Mapping[str, float]
    baselines: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    rows: int = 0
    higher_is_better: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a run ended; result.json holds this. `history` and `evaluations` are empty for a run that had ended before.

    Attributes:
        status: `done`, `stopped` (StopRun), `interrupted` (Ctrl-C) or `failed`.
        exit_code: of the command.
        reason: why it ended, one line; empty when done.
        steps: optimizer steps done.
        metrics: the last value of each metric.
        best: the best value of each evaluation metric.
        artifact: folder of the trained model or adapter; None if nothing was saved.
        plan_hash: SHA-256 of the plan.
        seconds: wall time.
        artifact_step: optimizer steps of the artifact; fewer than `steps` if an earlier checkpoint was better. None
            without artifact.
        history: every reported step, also of earlier processes of the run; not in result.json.
        evaluations: every evaluation, likewise.
        data: the reports on the rows, training rows first.
        environment: what affects the numbers besides the plan: versions, the device.
    """

    status: Literal["done", "stopped", "interrupted", "failed"]
    exit_code: int
    reason: str
    steps: int
    metrics: Mapping[str, float]
    best: Mapping[str, float]
    artifact: Path | None
    plan_hash: str
    seconds: float
    artifact_step: int | None = None
    history: tuple[StepReport, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    data: tuple[DataReport, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> list[dict[str, float]]:
        """Every step with its metrics, one dictionary a step: `step`, `epoch`, `loss`, `learning_rate`, `grad_norm`,
        `tokens_per_second`, `seconds`, further metrics of the method, and `eval/NAME` of evaluations at that step;
        evaluations before training are at step 0. `pandas.DataFrame(outcome.rows())` is a table of them.
        """
        by_step: dict[int, dict[str, float]] = {}
        for report in self.history:
            figures = ("epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds")
            values = {name: float(getattr(report, name)) for name in figures}
            by_step[report.step] = {"step": report.step, **values, **report.metrics}
        for evaluation in self.evaluations:
            row = by_step.setdefault(evaluation.step, {"step": evaluation.step})
            row |= {f"eval/{name}": value for name, value in evaluation.metrics.items()}
        return [by_step[step] for step in sorted(by_step)]
