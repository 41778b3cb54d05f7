"""A stranger's plugin: a wheel built outside the tree brings a loss, a reward, a family, an attention, kernels and a
command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLUGIN = """
    from finetooth_hooks import (
        Attention, AttentionServes, Command, Family, Kernel, Loss, Reward, Serves, hookimpl,
    )

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
    def ft_kernels():
        head = Serves(
            operation="linear_logprob", devices=frozenset({"cpu"}), dtypes=frozenset({"fp32"}), result="full", rank=None
        )
        yield Kernel(name="acme_head", build="acme_stranger.kernels:build", summary="whole logits", serves=(head,))

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
KERNELS = """
    from pathlib import Path

    from finetooth_hooks import Context, NoOptions
    from finetooth_hooks.protocols import Kernel

    def build(options: NoOptions, context: Context) -> Kernel:
        import torch
        from finetooth_kernels.contract import LinearLogprob

        def linear_logprob(
            hidden, weight, targets, *, mask=None, bias_v=None, scale=1.0, softcap=None, temperature=1.0, entropy=False,
            top1=False, expected=None, chunk_bytes=0,
        ):
            Path("acme_head_computed").touch()
            counts = torch.ones(len(hidden), dtype=torch.bool) if mask is None else mask
            logits = torch.nn.functional.linear(hidden[counts], weight, bias_v) * scale
            logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            logp = (logits / temperature).log_softmax(-1)
            columns = targets if targets.dim() == 2 else targets.unsqueeze(1)

            def whole(values, nothing):
                return values.new_full((len(hidden), *values.shape[1:]), nothing).index_put((counts,), values)

            taken = whole(logp.gather(-1, columns[counts]), 0.0)
            spread = whole(-(logp.exp() * logp).sum(-1), 0.0) if entropy else None
            likeliest = whole(logits.argmax(-1), -1) if top1 else None
            return LinearLogprob(taken if targets.dim() == 2 else taken.squeeze(1), spread, likeliest)

        return Kernel({"linear_logprob": linear_logprob}, "the whole logits at once")
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
    modules["kernels.py"] = KERNELS
    modules["command.py"] = COMMAND
    requires = ["finetooth-hooks>=2,<3", "click>=8.1"]
    prefix.install({"acme-stranger": distribution_files("acme-stranger", PLUGIN, requires=requires, modules=modules)})
    return prefix


@pytest.fixture(scope="module")
def said(stranger: Any) -> dict[str, Any]:
    """What some commands say, in one fresh process."""
    calls = {
        "list": ["plugins", "list"],
        "doctor": ["plugins", "doctor", "acme-stranger"],
        "explain": ["plugins", "explain", "loss:acme_margin"],
        "explain attention": ["plugins", "explain", "attention:acme_rows"],
        "explain kernel": ["plugins", "explain", "kernel:acme_head"],
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
        "kernel acme_head",
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_its_attention_and_kernel_train_as_the_models_own(stranger: Any, tiny_model: Path) -> None:
    """One wheel brings both; the same run with the model's own attention and finetooth's head is the truth."""
    rows = [{"prompt": f"What is {i} plus {i}?", "completion": f"{2 * i}"} for i in range(8)]
    (stranger.work / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    computed = stranger.work / "acme_head_computed"
    computed.unlink(missing_ok=True)  # the doctor calls kernels too
    losses = {}
    for attention, head in (("eager", "auto"), ("acme_rows", "acme_head")):
        recipe = {
            "model": str(tiny_model),
            "data": {"train": "sums.jsonl", "renderer": "chatml"},
            "backend": {"name": "torch", "attention": attention},
            "kernels": {"linear_logprob": head},
            "adapter": {"name": "lora", "rank": 2},
            "train": {"max_steps": 3, "batch_size": 4, "max_length": 64, "precision": "fp32"},
            "trackers": ["jsonl"],
            "output": f"run-{attention}",
        }
        (stranger.work / "recipe.yaml").write_text(json.dumps(recipe))
        result = stranger.ft("run", "recipe.yaml")
        assert result.code == 0, result.err + result.out
        assert computed.exists() == (head == "acme_head")
        lines = (stranger.work / f"run-{attention}/metrics.jsonl").read_text().splitlines()
        losses[attention] = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
        plan = json.loads((stranger.work / f"run-{attention}/plan.json").read_text())
        decided = {one["setting"]: (one["value"], one["reason"]) for one in plan["decisions"]}
        value, reason = decided["backend.attention"]
        assert value.endswith(f":{attention}") and reason == "the recipe says so"
    said = "the recipe says so; acme_head: the whole logits at once"
    assert decided["kernels.linear_logprob"] == ("acme-stranger:acme_head", said)
    assert len(losses["eager"]) == 3
    assert losses["acme_rows"] == pytest.approx(losses["eager"], rel=1e-5)


def test_explain_shows_what_its_attention_and_kernel_serve(said: dict[str, Any]) -> None:
    attention, kernel = said["explain attention"].out, said["explain kernel"].out
    assert "serves     devices cpu; precisions fp32;" in attention
    assert "when the recipe names it in its backend, attention: acme_rows" in attention
    assert "linear_logprob (cpu; fp32; by name only)" in kernel
    assert "whole logits" in kernel
