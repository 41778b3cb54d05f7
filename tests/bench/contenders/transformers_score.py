"""A plain transformers forward scores rows: batches padded on the right, log-softmax of the logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meter import Meter, forget_peak, peak_resident, resident

BATCH = 8


def main() -> None:
    """Score and report."""
    meter = Meter()
    spec = meter.spec
    import torch
    from transformers import AutoModelForCausalLM

    folder = spec["enlarged_folder"] if spec.get("enlarged") else spec["model_folder"]
    chosen = {"bf16": {"dtype": torch.bfloat16}, "fp32": {"dtype": torch.float32}}.get(spec["precision"], {})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, **chosen).eval().to(device)
    rows = json.loads(Path(spec["score_file"]).read_text(encoding="utf-8"))[: spec["score_rows"]]
    forget_peak()
    before, began = resident(), meter.now()
    answers: list[list[float]] = []
    with torch.no_grad():
        for begin in range(0, len(rows), BATCH):
            answers += batch_scores(model, rows[begin : begin + BATCH], device)
    seconds = meter.now() - began
    tokens = sum(len(row["tokens"]) - 1 for row in rows)
    positions, pairs = padded([len(row["tokens"]) for row in rows], BATCH)
    meter.write(
        tokens=tokens,
        score_s=seconds,
        tokens_per_second=tokens / seconds,
        working_bytes=max(0, peak_resident() - before),
        answers=answers,
        passes="forward",
        positions=positions,
        head_positions=positions,
        pairs=pairs,
        settings={"dtype": str(model.dtype), "attention": model.config._attn_implementation, "batch": BATCH},
    )


def padded(lengths: list[int], batch: int) -> tuple[int, int]:
    """Positions of batches in their order, each padded to its longest row, and pairs of positions in a row."""
    batches = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    return sum(max(one) * len(one) for one in batches), sum(max(one) ** 2 * len(one) for one in batches)


def batch_scores(model: Any, rows: list[dict[str, list[int]]], device: str) -> list[list[float]]:
    """Log-probabilities of the trained tokens of each row."""
    import torch

    width = max(len(row["tokens"]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row["tokens"])] = torch.tensor(row["tokens"])
        mask[i, : len(row["tokens"])] = 1
    ids, mask = ids.to(device), mask.to(device)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1).float().cpu()
    return [logprobs[i, [t - 1 for t in row["trained"]]].tolist() for i, row in enumerate(rows)]


if __name__ == "__main__":
    main()
