"""One cell of `measure_fit.py`, in a process of its own: `fit_cell.py measured|plain|timed|rows|peer RECIPE
CELL`."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

TEXT = (
    "The sun is a star at the centre of the solar system. It gives light and heat to the planets around it, of which "
    "the earth is the third. Water on the earth rises into the air as vapour, falls as rain, and flows back to the sea "
    "in rivers. Plants take water from the ground and light from the sun."
)
MIB = 2**20
FORWARD = "forward.npy"
"""Beside the run: log-probabilities of the text before its first step."""
PEERS = ("quantizer:plain", "quantizer:nf4", "quantizer:fp4", "quantizer:bnb_int8")
"""Cells that TRL, peft and bitsandbytes have, too."""


def measured(recipe: dict[str, Any], cell: str) -> dict[str, Any]:
    """Losses, memory against the plan; of a run with checkpoints, whether one that is taken up from its first ends with
    the same bytes."""
    import finetooth
    import numpy as np

    session = finetooth.session(recipe)
    found: dict[str, Any] = {"planned": session.plan.memory.total // MIB}
    if cell.startswith("quantizer:"):
        np.save(Path(recipe["output"]).with_name(FORWARD), _forward(session))
    session.run()
    found["peak"] = session.engine.usage().peak_memory // MIB
    folder = Path(recipe["output"])
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [event["metrics"]["loss"] for event in events if event["event"] == "evaluation"]
    found |= {"before": losses[0], "after": losses[-1]}
    if "checkpoint" in recipe:
        del session  # its memory is that of another run from here on
        found["resumes"] = _resumes(folder, recipe["train"]["max_steps"])
    return found


def timed(recipe: dict[str, Any], cell: str) -> dict[str, Any]:
    """Seconds of a step, the median of all but the first."""
    import finetooth

    finetooth.session(recipe).run()
    lines = (Path(recipe["output"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return {"seconds": statistics.median([event["seconds"] for event in events if event["event"] == "step"][1:])}


def plain(recipe: dict[str, Any], cell: str) -> dict[str, Any]:
    """How far a quantizer moves log-probabilities, on average: those that `measured` kept, beside the plain base's. In
    a process of its own, since what a second model leaves behind would be counted as the run's."""
    import finetooth
    import numpy as np

    kept = Path(recipe["output"]).with_name(FORWARD)
    if cell == "quantizer:plain" or not kept.is_file():
        return {}
    forward = _forward(finetooth.session({**recipe, "quantization": None}))
    return {"forward": float(np.abs(np.load(kept) - forward).mean())}


def _forward(session: Any) -> Any:
    """Log-probabilities of the text."""
    import numpy as np
    from finetooth_hooks import Datum

    datum = Datum.from_tokens(session.job.context.tokenizer.encode(TEXT))
    return np.asarray(session.engine.logprobs([datum])[0])


def _resumes(folder: Path, steps: int) -> bool:
    """Whether the run, taken up again from its first checkpoint, ends with the same bytes: its weights, and the state
    of engine and optimizer after the last step.

    Args:
        folder: of the run that is done; what its second half left is taken away and made again.
        steps: of the whole run.
    """
    import finetooth

    last = folder / "checkpoints" / f"step-{steps}"
    wanted = _hashes(folder, last)
    assert any(last.name in name for name in wanted)
    for made in (last, folder / "artifact"):
        shutil.rmtree(made)
    (folder / "result.json").unlink()
    finetooth.resume(folder)
    return wanted == _hashes(folder, last)


def _hashes(folder: Path, last: Path) -> dict[str, str]:
    """SHA-256 of every tensor file that the end of a run leaves, by its name."""
    files = sorted(file for place in (folder / "artifact", last) for file in place.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): hashlib.file_digest(file.open("rb"), "sha256").hexdigest() for file in files}


def rows(recipe: dict[str, Any], cell: str) -> dict[str, Any]:
    """Write the plain model and the tokens of the steps for `peer`."""
    if cell not in PEERS:
        return {}
    import finetooth

    session = finetooth.session({**recipe, "quantization": None})
    context, folder = session.job.context, Path(recipe["output"])
    model = context.loader.load(context.model.reference, framework="torch", precision="fp32", device="cpu")
    model.save_pretrained(folder / "model")
    context.tokenizer.save(folder / "model")
    taken = _first(session, recipe["train"]["max_steps"])
    tokens = [{"input_ids": [int(token) for token in datum.tokens]} for datum in taken]
    (folder / "rows.json").write_text(json.dumps(tokens), encoding="utf-8")
    return {}


def peer(recipe: dict[str, Any], cell: str) -> dict[str, Any]:
    """TRL, peft and bitsandbytes, on what `rows` wrote, so that the peak is theirs alone; empty without such a cell."""
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    name = cell.partition(":")[2]
    if cell not in PEERS:
        return {}
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    folder = Path(recipe["output"])
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    bits: dict[str, Any] = {}
    if name != "plain":
        four = {"load_in_4bit": True, "bnb_4bit_quant_type": name, "bnb_4bit_use_double_quant": True}
        given = {"load_in_8bit": True} if name == "bnb_int8" else {**four, "bnb_4bit_compute_dtype": torch.float32}
        bits = {"quantization_config": BitsAndBytesConfig(**given)}
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, **bits)
    took: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            took.append(time.perf_counter())

        def on_step_end(self, *given: Any, **named: Any) -> None:
            took[-1] = time.perf_counter() - took[-1]

    settings = SFTConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=8, learning_rate=1e-3, max_steps=len(rows) // 8,
        lr_scheduler_type="constant", save_strategy="no", report_to=[], use_cpu=True, bf16=False, max_length=256,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
    )  # fmt: skip
    trainer.train()
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {"peer_seconds": statistics.median(took[1:]), "peer_peak": peak // 1024}


def _first(session: Any, steps: int) -> list[Any]:
    """Data of the first steps, as the method hands them to the engine."""
    seen: list[Any] = []
    engine = session.engine
    real = engine.forward_backward

    def noting(data: Any, *given: Any, **named: Any) -> Any:
        seen.extend(data)
        return real(data, *given, **named)

    engine.forward_backward = noting
    for _ in zip(session.job.method.steps(engine), range(steps), strict=False):
        pass
    return seen[: steps * 8]


if __name__ == "__main__":
    way, given, named = sys.argv[1:]
    ways = {"measured": measured, "plain": plain, "timed": timed, "rows": rows, "peer": peer}
    print("found", json.dumps(ways[way](json.loads(given), named)))
