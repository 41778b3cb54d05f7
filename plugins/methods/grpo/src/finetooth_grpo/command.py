"""The command `ft rollouts RUN`, which shows a run's rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

import click
from finetooth_hooks import CommandContext, UserError
from finetooth_hooks.rollouts import Rollout
from finetooth_rollouts.advantages import groups_of
from finetooth_rollouts.metrics import batch_metrics
from finetooth_rollouts.rollouts_file import ROUNDS, read_rollouts

WIDTH = 72
"""Number of shown letters of an answer."""


CALLED = {"length": "cut off", "turns": "out of turns", "error": "the environment failed", "timeout": "timed out"}
"""Words for the shown outcomes."""


@click.command("rollouts")
@click.argument("run", metavar="RUN")
@click.option("--step", type=click.IntRange(min=1), help="The rollouts of this step; default: the last one.")
@click.option("--groups", type=click.IntRange(min=1), default=3, show_default=True, help="Number of groups to show.")
@click.option("--full", is_flag=True, help="Show whole answers, not cut to a line.")
@click.pass_obj
def command(obj: CommandContext, run: str, step: int | None, groups: int, full: bool) -> None:
    """Show what RUN learned from: the reward step by step, then answers of one step with their rewards and advantages.

    RUN is a run's folder, or its name under `runs/`. A step that learned from the same rollouts again has none of its
    own.
    """
    folder = obj.run_folder(run)
    if folder is None:
        raise UserError(f"RUN: no run {run}", action="give the folder of a run, or its name under runs/")
    steps = dict(read_rollouts(folder))
    if not steps:
        if rounds := sorted((folder / ROUNDS).glob("*.jsonl")):
            raise UserError(
                f"RUN: {folder} has no rollouts: it learned from pairs of its own answers",
                action=f"read {rounds[-1]} and the files of earlier rounds: each line is a pair with its scores",
            )
        raise UserError(
            f"RUN: {folder} has no rollouts",
            action="give a run whose method samples, and leave method.keep_rollouts on",
        )
    if step is not None and step not in steps:
        near = ", ".join(map(str, sorted(steps, key=lambda number: abs(number - step))[:5]))
        raise UserError(f"--step {step}: the run sampled nothing at this step", action=f"give one of {near}, ...")
    _overview(steps)
    chosen = max(steps) if step is None else step
    click.echo(f"\nstep {chosen}")
    for group in groups_of(steps[chosen])[:groups]:
        _show(steps[chosen][group], full=full)


def _overview(steps: dict[int, list[Rollout]]) -> None:
    """A line for each step, or for some of many."""
    click.echo("  step  reward  groups alike  mean length  cut off")
    numbers = sorted(steps)
    for number in numbers if len(numbers) <= 20 else [*numbers[:: -(-len(numbers) // 20)], numbers[-1]]:
        metrics = batch_metrics(steps[number])
        alike = metrics.get("frac_reward_zero_std")  # unknown with one answer to a prompt
        click.echo(
            f"{number:6}  {metrics['reward']:6.3f}  {'-' if alike is None else f'{alike:.0%}':>12}  "
            f"{metrics['completions/mean_length']:11.1f}  {metrics['completions/clipped_ratio']:7.0%}"
        )


def _show(group: Sequence[Rollout], *, full: bool) -> None:
    click.echo(f"  {group[0].id}")
    for rollout in sorted(group, key=lambda rollout: -(rollout.reward or 0.0)):
        advantage = sum(rollout.advantages) / len(rollout.advantages) if rollout.advantages else 0.0
        parts = (
            "" if len(rollout.rewards) < 2 else "  " + " ".join(f"{k} {_score(v)}" for k, v in rollout.rewards.items())
        )
        answer = rollout.transcript or rollout.text
        text = answer if full else shorten(answer, WIDTH, placeholder=" ...")
        cut = f" ({CALLED[rollout.outcome]})" if rollout.outcome in CALLED else ""
        click.echo(f"    reward {_score(rollout.reward)}  advantage {advantage:+.2f}{parts}  {text!r}{cut}")


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.3g}"
