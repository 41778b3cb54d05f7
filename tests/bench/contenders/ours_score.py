"""finetooth scores rows: `engine.logprobs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from meter import Meter, forget_peak, peak_resident, resident


def engine_recipe(spec: dict[str, Any], folder: str) -> dict[str, Any]:
    """The recipe of an engine that only reads and writes: a fresh adapter, no data."""
    return {
        "model": folder,
        "adapter": {"name": "lora", "rank": 16},
        "train": {"precision": spec["precision"], "max_length": 1024},
        "trackers": [],
        "output": str(Path(spec["scratch"]) / "run"),
    }


def read_data(spec: dict[str, Any]) -> list[Any]:
    """The rows to score, the trained tokens with weight 1."""
    from finetooth_hooks import Datum

    rows = json.loads(Path(spec["score_file"]).read_text(encoding="utf-8"))[: spec["score_rows"]]
    weights = [[float(i in set(row["trained"])) for i in range(len(row["tokens"]))] for row in rows]
    return [Datum.from_tokens(row["tokens"], of_row) for row, of_row in zip(rows, weights, strict=True)]


def main() -> None:
    """Score and report."""
    meter = Meter()
    spec = meter.spec
    import finetooth

    folder = spec["enlarged_folder"] if spec.get("enlarged") else spec["model_folder"]
    engine = finetooth.engine(engine_recipe(spec, folder))
    data = read_data(spec)
    executed = engine._parts.network.executed  # counts since it was last asked
    executed()
    forget_peak()
    before, began = resident(), meter.now()
    scores = engine.logprobs(data)
    seconds = meter.now() - began
    tokens = sum(len(datum) for datum in data)
    answers = [np.asarray(s)[d.mask].astype(float).tolist() for s, d in zip(scores, data, strict=True)]
    meter.write(
        tokens=tokens,
        score_s=seconds,
        tokens_per_second=tokens / seconds,
        flops=executed(),
        working_bytes=max(0, peak_resident() - before),
        answers=answers,
    )


if __name__ == "__main__":
    main()
