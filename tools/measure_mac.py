"""Measure this machine: a LoRA trained by `docs/recipes/mac-lora.yaml` and by mlx-lm itself, on the same rows.

    python tools/measure_mac.py Qwen/Qwen3-0.6B rows.jsonl     what a Mac does
    python tools/measure_mac.py --tiny                         a random model of a few thousand weights, to try it

Rows are conversations (`messages`). Each trains in a process of its own, all tokens of a row, in the same precision,
with batches of 4. Tokens are real ones; mlx-lm counts likewise. Prints a line for each, and what is asked: twice its
tokens per second, and 0.6 of its peak memory. Besides time it counts work, which is the same on every machine: the
positions that go through the layers and the rows that go through the head, forward (what is computed twice counts
twice), for a token of the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = """
import json, math, sys
from finetooth_core.cli import main
from finetooth_mlx.network import Network, placed_rows
seen, logits, states = {"layers": 0, "head": 0}, Network.logits, Network._states
def counted(self, hidden):
    seen["head"] += math.prod(hidden.shape[:-1])
    return logits(self, hidden)
def passed(self, rectangle, **more):
    placed = placed_rows(rectangle.batch, rectangle.pieces)
    seen["layers"] += (rectangle.tokens if placed is None else placed.source).size
    return states(self, rectangle, **more)
Network.logits, Network._states = counted, passed
code = main(sys.argv[1:])
print("WORK", json.dumps(seen), flush=True)
sys.exit(code)
"""
THEIRS = """
import json, sys, types
from mlx_lm import lora
from mlx_lm.tuner import trainer
seen, batches = {"layers": 0, "head": 0}, trainer.iterate_batches
def counted(*given, **more):
    for batch, lengths in batches(*given, **more):
        size = batch.shape[0] * (batch.shape[1] - 1)  # the last token of a row is a target alone
        seen.update({name: before + size for name, before in seen.items()})
        yield batch, lengths
trainer.train.__defaults__ = tuple(counted if of is batches else of for of in trainer.train.__defaults__)
from mlx_lm.tuner.callbacks import TrainingCallback
class Lines(TrainingCallback):
    def on_train_loss_report(self, info): print("REPORT", json.dumps(info), flush=True)
    def on_val_loss_report(self, info): pass
given = {**lora.CONFIG_DEFAULTS, **json.loads(sys.argv[1])}
lora.get_reporting_callbacks = lambda *_, **__: Lines()
lora.run(types.SimpleNamespace(**given))
print("WORK", json.dumps(seen), flush=True)
"""


def tiny(folder: Path) -> tuple[Path, Path]:
    """A random model and rows."""
    sys.path.insert(0, str(ROOT / "plugins/backends/mlx/tests"))
    from conftest import write_model  # type: ignore[import-not-found]  # of the tests

    (folder / "model").mkdir()
    rows = [
        {"messages": [{"role": "user", "content": f"{i}+1?"}, {"role": "assistant", "content": "one " * (i % 9 + 1)}]}
        for i in range(64)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model = write_model(folder / "model", "qwen3", width=64)
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    return model, folder / "rows.jsonl"


Measured = tuple[float, float, dict[str, float]]
"""Tokens per second, the median of all steps but the first; peak memory in bytes; and work by a token of the rows."""


def work(output: str, tokens: float) -> dict[str, float]:
    """What a process counted, by a token of the rows."""
    line = next(line for line in output.splitlines() if line.startswith("WORK "))
    return {name: count / tokens for name, count in json.loads(line[5:]).items()}


def ours(model: Path | str, rows: Path, steps: int, length: int, folder: Path) -> Measured:
    """Of finetooth."""
    given = {
        "model": model, "data.train": rows, "data.eval": "null", "train.max_steps": steps, "train.epochs": steps,
        "train.max_length": length,
        "evaluate": "{evaluators: []}", "checkpoint": "{}", "trackers": "[jsonl]", "output": folder / "ours",
        "method": "{name: sft, train_on: all}",
    }  # fmt: skip
    command = [sys.executable, "-c", OURS, "run", str(ROOT / "docs/recipes/mac-lora.yaml")]
    command += [f"{name}={value}" for name, value in given.items()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in (folder / "ours/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps_done = [line for line in lines if line.get("tokens_per_second")]
    speed = statistics.median(line["tokens_per_second"] for line in steps_done[1:])
    counted = work(done.stdout, sum(line["tokens"] for line in steps_done))
    return speed, max(line["memory"] for line in steps_done), counted


def theirs(model: Path | str, rows: Path, steps: int, length: int, folder: Path) -> Measured:
    """Of mlx-lm's own trainer."""
    (folder / "data").mkdir()
    for name in ("train", "valid"):
        (folder / "data" / f"{name}.jsonl").write_text(rows.read_text(encoding="utf-8"), encoding="utf-8")
    given = {
        "model": str(model), "train": True, "data": str(folder / "data"), "batch_size": 4, "iters": steps,
        "num_layers": -1, "val_batches": 0, "steps_per_eval": 10**9, "steps_per_report": 1, "learning_rate": 1e-4,
        "optimizer": "adamw", "adapter_path": str(folder / "theirs"), "max_seq_length": length, "save_every": 10**9,
        "lora_parameters": {
            "rank": 16, "dropout": 0.05, "scale": 2.0,
            "keys": [f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")],
        },
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", THEIRS, json.dumps(given)], check=True, capture_output=True, text=True)
    seen = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("REPORT ")]
    speed = statistics.median(report["tokens_per_second"] for report in seen[1:])
    return speed, max(report["peak_memory"] for report in seen) * 1e9, work(done.stdout, seen[-1]["trained_tokens"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("rows", nargs="?", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--length", type=int, default=2048, help="tokens of the longest row")
    given = parser.parse_args()
    if not given.tiny and (given.model is None or given.rows is None):
        parser.error("name a model and rows, or --tiny")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, rows = tiny(folder) if given.tiny else (given.model, given.rows)
        length = 128 if given.tiny else given.length
        measured = [measure(model, rows, given.steps, length, folder) for measure in (ours, theirs)]
    for called, (speed, memory, counted) in zip(("finetooth", "mlx-lm"), measured, strict=True):
        print(
            f"{called:10} {speed:12,.0f} tokens/s {memory / 1e9:8.3f} GB at the peak; for a token of the rows "
            f"{counted['layers']:.2f} positions through the layers, {counted['head']:.2f} rows through the head"
        )
    (speed, memory, _), (their_speed, their_memory, _) = measured
    print(
        f"{speed / their_speed:.2f} of mlx-lm's tokens/s (goal 2), {memory / their_memory:.2f} of its memory (goal 0.6)"
    )


if __name__ == "__main__":
    main()
