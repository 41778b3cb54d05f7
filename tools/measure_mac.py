"""Measure this machine: a LoRA trained by `docs/recipes/mac-lora.yaml` and by mlx-lm itself, on the same rows.

    python tools/measure_mac.py Qwen/Qwen3-0.6B rows.jsonl     what a Mac does
    python tools/measure_mac.py --tiny                         a random model of a few thousand weights, to try it

Rows are conversations (`messages`). Each trains in a process of its own, all tokens of a row, in the same precision,
with batches of 4. Tokens are real ones; mlx-lm counts likewise. Prints a line for each, and what is asked: twice its
tokens per second, and 0.6 of its peak memory.
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
THEIRS = """
import json, sys, types
from mlx_lm import lora
from mlx_lm.tuner.callbacks import TrainingCallback
class Lines(TrainingCallback):
    def on_train_loss_report(self, info): print("REPORT", json.dumps(info), flush=True)
    def on_val_loss_report(self, info): pass
given = {**lora.CONFIG_DEFAULTS, **json.loads(sys.argv[1])}
lora.get_reporting_callbacks = lambda *_, **__: Lines()
lora.run(types.SimpleNamespace(**given))
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


def ours(model: Path | str, rows: Path, steps: int, length: int, folder: Path) -> tuple[float, float]:
    """Tokens per second, the median of all steps but the first, and peak memory in bytes."""
    given = {
        "model": model, "data.train": rows, "data.eval": "null", "train.max_steps": steps, "train.epochs": steps,
        "train.max_length": length,
        "evaluate": "{evaluators: []}", "checkpoint": "{}", "trackers": "[jsonl]", "output": folder / "ours",
        "method": "{name: sft, train_on: all}",
    }  # fmt: skip
    command = [Path(sys.executable).with_name("ft"), "run", ROOT / "docs/recipes/mac-lora.yaml"]
    subprocess.run([*command, *(f"{name}={value}" for name, value in given.items())], check=True, capture_output=True)
    lines = [json.loads(line) for line in (folder / "ours/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps_done = [line for line in lines if line.get("tokens_per_second")]
    return statistics.median(line["tokens_per_second"] for line in steps_done[1:]), max(s["memory"] for s in steps_done)


def theirs(model: Path | str, rows: Path, steps: int, length: int, folder: Path) -> tuple[float, float]:
    """The same of mlx-lm's own trainer."""
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
    return speed, max(report["peak_memory"] for report in seen) * 1e9


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
    for called, (speed, memory) in zip(("finetooth", "mlx-lm"), measured, strict=True):
        print(f"{called:10} {speed:12,.0f} tokens/s {memory / 1e9:8.3f} GB at the peak")
    (speed, memory), (their_speed, their_memory) = measured
    print(
        f"{speed / their_speed:.2f} of mlx-lm's tokens/s (goal 2), {memory / their_memory:.2f} of its memory (goal 0.6)"
    )


if __name__ == "__main__":
    main()
