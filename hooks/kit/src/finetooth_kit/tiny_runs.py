"""Whole runs of a recipe in seconds, over a tiny random model: `ft run` as a test of a plugin.

A conftest names the fixture:

    from finetooth_kit.tiny_runs import tiny_run

and a test gives what differs from the recipe below; a plugin that is installed is there already:

    def test_it_learns(tiny_run):
        done = tiny_run({"optimizer": {"name": "acme_mars", "learning_rate": 0.01}})
        assert done.losses[-1] < done.losses[0]

Needs finetooth itself, torch and transformers, which are imported with the first run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROWS = [{"prompt": f"Say {word}.", "completion": f"{word} {word}"} for word in ("red", "green", "blue", "grey")]
ALPHABET = 256
SPECIAL = ("<|pad|>", "<|begin|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class TinyRun:
    """What came of a run.

    Attributes:
        outcome: as `finetooth.run` returns it.
        losses: of the steps, in order.
        folder: the run's.
    """

    outcome: Any
    losses: tuple[float, ...]
    folder: Path


TinyRuns = Callable[..., TinyRun]


def write_model(folder: Path, model_type: str = "llama") -> Path:
    """A model of two layers, 32 wide, with random weights from a seed, and a tokenizer of bytes.

    Args:
        model_type: as transformers calls it.
    """
    torch, transformers = import_module("torch"), import_module("transformers")
    ids = {"pad_token_id": ALPHABET, "bos_token_id": ALPHABET + 1, "eos_token_id": ALPHABET + 3}
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=ALPHABET + len(SPECIAL), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, **ids,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    _tokenizer(transformers).save_pretrained(folder)
    return folder


def _tokenizer(transformers: Any) -> Any:
    tokenizers = import_module("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    plain = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = tokenizers.decoders.ByteLevel()
    plain.add_special_tokens(list(SPECIAL))
    pad, begin, _, end = SPECIAL
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token=pad, bos_token=begin, eos_token=end, model_max_length=256
    )


def recipe_for(folder: Path, model: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of three steps on four rows.

    Args:
        changes: sections that go into its own, key by key; one that names another entry replaces its own.
    """
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    recipe: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(rows), "renderer": "chatml"},
        "adapter": {"name": "lora", "rank": 2},
        "train": {"max_steps": 3, "batch_size": 4, "max_length": 64, "precision": "fp32"},
        "trackers": ["jsonl"],
        "output": str(folder / "run"),
    }
    for name, section in changes.items():
        own = recipe.get(name)
        if isinstance(own, dict) and isinstance(section, Mapping) and section.get("name") in (None, own.get("name")):
            section = {**own, **section}
        recipe[name] = section
    return recipe


def metrics_of(run: Path) -> tuple[dict[str, Any], ...]:
    """What the tracker `jsonl` wrote of the steps."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return tuple(line for line in map(json.loads, lines) if line["event"] == "step")


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_model`."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny_run(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    """Trains three steps: `tiny_run({"optimizer": "mine"})`; what the run refuses or fails with is raised."""

    def run(changes: Mapping[str, Any] | None = None) -> TinyRun:
        folder = tmp_path_factory.mktemp("run")
        outcome = import_module("finetooth").run(recipe_for(folder, tiny_model_folder, changes or {}))
        return TinyRun(outcome, tuple(step["loss"] for step in metrics_of(folder / "run")), folder / "run")

    return run


__all__ = ["TinyRun", "TinyRuns", "tiny_model_folder", "tiny_run", "write_model"]
