"""finetooth scores rows: `engine.logprobs`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from meter import Meter, forget_peak, peak_resident, resident


def main() -> None:
    """Score and report."""
    meter = Meter()
    spec = meter.spec
    import finetooth
    from finetooth_hooks import Datum

    folder = spec["enlarged_folder"] if spec.get("enlarged") else spec["model_folder"]
    engine = finetooth.engine(
        {
            "model": folder,
            "adapter": {"name": "lora", "rank": 16},
            "train": {"precision": spec["precision"], "max_length": 1024},
            "trackers": [],
            "output": str(Path(spec["scratch"]) / "run"),
        }
    )
    rows = json.loads(Path(spec["score_file"]).read_text(encoding="utf-8"))[: spec["score_rows"]]
    data = [
        Datum.from_tokens(row["tokens"], [float(i in set(row["trained"])) for i in range(len(row["tokens"]))])
        for row in rows
    ]
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
        working_bytes=max(0, peak_resident() - before),
        answers=answers,
    )


if __name__ == "__main__":
    main()
