"""What one long row takes on a CPU: a step of LoRA in a process of its own for each length.

    python tools/measure_long_rows.py [--lengths 8192 65536] [--layers 2]

Writes docs/benchmarks/long-rows.md. The model is SmolLM2-135M cut to its first layers: a further layer takes what the
residual stream between two layers takes, and the time of one.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/benchmarks/long-rows.md"
FIGURES = PAGE.with_suffix(".json")
LENGTHS = (8192, 32768, 65536)
PIECES = 2048
MIB = 1 << 20
START = """# One long row

One step (forward, backward, update) of a LoRA of rank 8 over one row of random tokens, on a CPU in {precision}, layers
recomputed: the first {layers} layers of SmolLM2-135M (width 576, feed-forward {ffn}, 9 heads, {tokens:,} tokens).
Written by

<!-- not run: it takes an hour -->
```sh
python tools/measure_long_rows.py
```

Memory is the process's peak above that of a row of 64 tokens, in MiB, with feed-forward blocks in pieces of {pieces}
tokens (`backend.feed_forward_tokens`) and at once, and what the plans of the two rows differ by. The last three
columns say what single things would take if they were held whole: scores of one layer, logits of the row, and gate,
up and their product in one feed-forward block. Attention goes segment by segment and the head by chunks whatever the
settings. The row of 64 tokens stands below the peak of loading, which hides part of what a short row takes. A further
layer adds the residual stream between two layers, 4 bytes for each of its numbers: {between:,.0f} MiB at 65,536
tokens. Each figure is of one run. The machine did other work at the same time, so that seconds measure no speed.

Of the figures from 2026-11-28: the row of 65,536 tokens took 21 % more than the plan said at first. What joining the
pieces takes was added to the plan for it, and the plans of this page were made again; that row is no test of them.

| tokens | in pieces | plan says | at once | plan says | seconds | scores | logits | feed-forward |
|---|---|---|---|---|---|---|---|---|
"""


def write_model(folder: Path, layers: int, positions: int) -> dict[str, int]:
    """SmolLM2-135M cut to its first layers, with as many positions as the longest row has; its sizes."""
    import finetooth

    session = finetooth.session({"model": "smollm2-135m", "adapter": {"name": "lora", "rank": 8}}, data=False)
    context = session.job.context
    model = context.loader.load(context.model.reference, framework="torch", precision="fp32", device="cpu")
    model.model.layers = model.model.layers[:layers]
    config = model.config
    config.num_hidden_layers, config.max_position_embeddings = layers, positions
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    model.save_pretrained(folder)
    context.tokenizer.save(folder)
    return {
        "layers": layers, "width": config.hidden_size, "ffn": config.intermediate_size, "tokens": config.vocab_size,
        "heads": config.num_attention_heads,
    }  # fmt: skip


def one_step(model: str, length: int, pieces: int, precision: str) -> dict[str, float]:
    """MiB at the peak above a row of 64 tokens, what the plan says of the same, and seconds of a step."""
    import finetooth
    import numpy as np
    from finetooth_hooks import Datum

    def recipe(longest: int) -> dict[str, Any]:
        return {
            "model": model, "adapter": {"name": "lora", "rank": 8},
            "backend": {"name": "torch", "feed_forward_tokens": pieces},
            "train": {
                "precision": precision, "max_length": longest, "gradient_checkpointing": True, "batch_size": 1,
                "micro_batch_tokens": longest,
            },
        }  # fmt: skip

    short = finetooth.session(recipe(64), data=False).plan.memory.total
    session = finetooth.session(recipe(length), data=False)
    planned = session.plan.memory.total - short
    loss = session.job.context.loss("cross_entropy", setting="method")
    draw, engine = np.random.default_rng(length), session.engine

    def step(count: int) -> None:
        engine.forward_backward([Datum.from_tokens(draw.integers(3, 49000, count).tolist())], loss)
        engine.step()

    step(64)
    before, begun = peak(), time.perf_counter()
    step(length)
    return {"mib": (peak() - before) / MIB, "planned": planned / MIB, "seconds": time.perf_counter() - begun}


def peak() -> int:
    """Bytes of this process at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def page(found: dict[str, Any]) -> str:
    """docs/benchmarks/long-rows.md."""
    model = found["model"]
    between = 4 * LENGTHS[-1] * model["width"] / MIB
    lines = [START.format(**model, precision=found["precision"], pieces=f"{PIECES:,}", between=between)]
    size = {"fp32": 4, "bf16": 2}[found["precision"]]
    for length in sorted({int(key.split(":")[0]) for key in found["rows"]}):
        piece, whole = (found["rows"].get(f"{length}:{pieces}") for pieces in (PIECES, 0))
        sides = (length**2 * model["heads"], length * model["tokens"], length * 3 * model["ffn"])
        cells = [f"{length:,}"]
        for row in (piece, whole):
            cells += ["not measured", ""] if row is None else [f"{row['mib']:,.0f}", f"{row['planned']:,.0f}"]
        cells += [f"{piece['seconds']:,.0f}" if piece else "", *(f"{size * side / MIB:,.0f}" for side in sides)]
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


def main() -> int:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--pieces", type=int, nargs="+", default=[PIECES, 0])
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "LENGTH", "PIECES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        model, length, pieces = given.one
        print("found", json.dumps(one_step(model, int(length), int(pieces), given.precision)))
        return 0
    found: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {"rows": {}}
    if given.page:
        PAGE.write_text(page(found), encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory(prefix="long-") as folder:
        found |= {"model": write_model(Path(folder), given.layers, max(LENGTHS)), "precision": given.precision}
        for length in given.lengths:
            for pieces in given.pieces:
                one = [folder, str(length), str(pieces), "--precision", given.precision]
                command = [sys.executable, __file__, "--one", *one]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                lines = [line for line in done.stdout.splitlines() if line.startswith("found ")]
                if not lines:
                    raise SystemExit(done.stderr[-2000:])
                found["rows"][f"{length}:{pieces}"] = json.loads(lines[0].removeprefix("found "))
                print(length, pieces, found["rows"][f"{length}:{pieces}"], flush=True)
                FIGURES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                PAGE.write_text(page(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
