"""A stranger's plugin: a wheel built outside the tree brings a loss, a reward, a family, an attention and a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLUGIN = """
    from finetooth_hooks import Attention, AttentionServes, Command, Family, Loss, Reward, hookimpl

    @hookimpl
    def ft_losses():
        yield Loss(name="acme_margin", build="acme_stranger.loss:build", summary="cross entropy above a margin")

    @hookimpl
    def ft_rewards():
        yield Reward(name="acme_short", build="acme_stranger.reward:build", summary="1 for a short answer")

    @hookimpl
    def ft_families():
        yield Family(name="acme_family", build="acme_stranger.family:build", summary="like a llama")

    @hookimpl
    def ft_attention():
        serves = AttentionServes(devices=frozenset({"cpu"}), precisions=frozenset({"fp32"}), fused=False)
        yield Attention(name="acme_rows", build="acme_stranger.attention:build", summary="row by row", serves=serves)

    @hookimpl
    def ft_commands():
        yield Command(name="acme_hello", build="acme_stranger.command:command", summary="count the losses")
"""
LOSS = '''
    from finetooth_hooks import Context, Contribution, LossResult, Options
    from finetooth_hooks import arrays as xp

    class MarginOptions(Options):
        margin: float = 0.5
        """Nats below which a target counts no more."""

    def build(options: MarginOptions, context: Context):
        def margin(outputs, data, state):
            each = xp.maximum(-outputs["logprobs"] - options.margin, 0.0)
            return LossResult({"margin": Contribution(xp.sum(xp.where(data.mask, data.fields["weights"] * each, 0.0)))})
        return margin
'''
REWARD = '''
    from finetooth_hooks import Context, Options

    class ShortOptions(Options):
        characters: int = 10
        """Longest answer that scores 1."""

    def build(options: ShortOptions, context: Context):
        def short(prompts, completions, columns):
            return [float(len(completion) <= options.characters) for completion in completions]
        return short
'''
FAMILY = """
    from finetooth_hooks import Context, NoOptions
    from finetooth_hooks.protocols import Head, ModelFacts

    def build(options: NoOptions, context: Context):
        return AcmeFamily()

    class AcmeFamily:
        def facts(self, config):
            heads = config["num_attention_heads"]
            linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
            return ModelFacts(
                hidden_size=config["hidden_size"], layers=config["num_hidden_layers"], heads=heads,
                kv_heads=config["num_key_value_heads"], head_dim=config["hidden_size"] // heads,
                ffn_size=config["intermediate_size"], vocab_size=config["vocab_size"],
                max_positions=config["max_position_embeddings"], layer_path="model.layers", body="model", head=Head(),
                attention_targets=linear[:4], linear_targets=linear, renderer="chatml", first_loss=(0.0, 20.0),
            )
"""
ATTENTION = """
    from finetooth_hooks import Context, NoOptions

    def build(options: NoOptions, context: Context):
        import torch

        def attend(query, key, value, *, scale, lengths, causal, window, softcap, sinks):
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
            cached, rows = key.shape[2] - query.shape[2], []
            for row, sequences in enumerate(lengths):
                owner = torch.tensor([n for n, length in enumerate(sequences) for _ in range(length)])
                place = torch.arange(len(owner))
                seen = owner[cached:, None] == owner
                if causal:
                    seen = seen & (place <= place[cached:, None])
                scores = query[row] @ key[row].transpose(1, 2) * scale
                rows.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value[row])
            return torch.stack(rows)
        return attend
"""
COMMAND = '''
    import click

    @click.command()
    @click.pass_obj
    def command(context):
        """Count the losses."""
        click.echo(f"hello, {len(context.catalog.all('loss'))} losses")
'''


@pytest.fixture(scope="module")
def stranger(new_prefix: Callable[..., Any], distribution_files: Callable[..., dict[str, str]]) -> Any:
    prefix = new_prefix("stranger")
    modules = {"loss.py": LOSS, "reward.py": REWARD, "family.py": FAMILY, "attention.py": ATTENTION}
    modules["command.py"] = COMMAND
    requires = ["finetooth-hooks>=1,<2", "click>=8.1"]
    prefix.install({"acme-stranger": distribution_files("acme-stranger", PLUGIN, requires=requires, modules=modules)})
    return prefix


@pytest.fixture(scope="module")
def said(stranger: Any) -> dict[str, Any]:
    """What some commands say, in one fresh process."""
    calls = {
        "list": ["plugins", "list"],
        "doctor": ["plugins", "doctor", "acme-stranger"],
        "explain": ["plugins", "explain", "loss:acme_margin"],
        "help": ["--help"],
        "hello": ["acme_hello"],
    }
    return dict(zip(calls, stranger.fts(*calls.values()), strict=True))


def test_list_shows_it(said: dict[str, Any]) -> None:
    result = said["list"]
    assert result.code == 0
    (line,) = (line for line in result.out.splitlines() if line.startswith("acme-stranger"))
    assert line.split()[1] == "1.2.3"
    for entry in (
        "loss acme_margin",
        "reward acme_short",
        "family acme_family",
        "attention acme_rows",
        "command acme_hello",
    ):
        assert entry in line


def test_doctor_passes_it(said: dict[str, Any]) -> None:
    result = said["doctor"]
    assert result.code == 0, result.out
    assert result.out.startswith("ok     acme-stranger 1.2.3")
    assert int(result.out.split()[3]) > 20


def test_explain_shows_its_options(said: dict[str, Any]) -> None:
    assert "margin: float = 0.5\n      Nats below which a target counts no more." in said["explain"].out


def test_its_command_runs_and_is_in_the_help(said: dict[str, Any]) -> None:
    assert "acme_hello" in said["help"].out
    assert said["hello"].code == 0
    assert said["hello"].out.startswith("hello, ")


def test_run_trains_with_it(stranger: Any, tiny_model: Path) -> None:
    """Its family, loss and reward drive a real run, and the manifest records it."""
    rows = [{"prompt": f"What is {i} plus {i}?", "completion": f"{2 * i}"} for i in range(8)]
    (stranger.work / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"name": str(tiny_model), "family": "acme_family"},
        "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
        "method": {"name": "sft", "loss": {"name": "acme_margin", "margin": 0.25}},
        "adapter": {"name": "lora", "rank": 2},
        "train": {"max_steps": 3, "batch_size": 4, "max_length": 64},
        "evaluate": {
            "evaluators": [
                {
                    "name": "exact_match",
                    "reward": {"name": "acme-stranger:acme_short", "characters": 5},
                    "max_tokens": 4,
                }
            ]
        },
        "output": "run",
    }
    (stranger.work / "recipe.yaml").write_text(json.dumps(recipe))
    result = stranger.ft("run", "recipe.yaml")
    assert result.code == 0, result.err + result.out
    outcome = json.loads((stranger.work / "run/result.json").read_text())
    assert outcome["status"] == "done"
    assert outcome["steps"] == 3
    kept = "".join(path.read_text() for path in (stranger.work / "run").rglob("*.json"))
    assert '"acme-stranger": "1.2.3"' in kept
    assert "acme-stranger:acme_family" in kept


def test_its_attention_trains_as_the_models_own(stranger: Any, tiny_model: Path) -> None:
    rows = [{"prompt": f"What is {i} plus {i}?", "completion": f"{2 * i}"} for i in range(8)]
    (stranger.work / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = {}
    for attention in ("acme_rows", "eager"):
        recipe = {
            "model": str(tiny_model),
            "data": {"train": "sums.jsonl", "renderer": "chatml"},
            "backend": {"name": "torch", "attention": attention},
            "adapter": {"name": "lora", "rank": 2},
            "train": {"max_steps": 3, "batch_size": 4, "max_length": 64, "precision": "fp32"},
            "trackers": ["jsonl"],
            "output": f"run-{attention}",
        }
        (stranger.work / "recipe.yaml").write_text(json.dumps(recipe))
        result = stranger.ft("run", "recipe.yaml")
        assert result.code == 0, result.err + result.out
        lines = (stranger.work / f"run-{attention}/metrics.jsonl").read_text().splitlines()
        losses[attention] = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
        plan = json.loads((stranger.work / f"run-{attention}/plan.json").read_text())
        (decided,) = (one for one in plan["decisions"] if one["setting"] == "backend.attention")
        assert decided["value"].endswith(f":{attention}") and decided["reason"] == "the recipe says so"
    assert len(losses["eager"]) == 3
    assert losses["acme_rows"] == pytest.approx(losses["eager"], rel=1e-5)
    explained = stranger.ft("plugins", "explain", "attention:acme_rows")
    assert "serves     devices cpu; precisions fp32;" in explained.out
    assert "when the recipe names it in its backend, attention: acme_rows" in explained.out
