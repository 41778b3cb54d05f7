"""The cells of `measure_fit.py`, and the recipe of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUANTIZERS: tuple[str, ...] = (
    "int8", "int4", "hqq", "mxfp4", "gptq", "nf4", "fp4", "bnb_int8", "torchao_int8", "torchao_int4", "torchao_fp8",
    "mxfp8", "nvfp4",
)  # fmt: skip
ADAPTERS: Mapping[str, Any] = {
    "full": "full", "freeze": {"name": "freeze", "layers": 4}, "lisa": "lisa", "lora": {"name": "lora", "rank": 16},
    "rslora": {"name": "lora", "rank": 16, "rslora": True}, "dora": {"name": "lora", "rank": 16, "dora": True},
    "loraplus": {"name": "lora", "rank": 16, "loraplus_ratio": 16},
    "pissa": {"name": "lora", "rank": 16, "init": "pissa", "svd_iterations": 16},
    "eva": {"name": "lora", "rank": 16, "init": "eva"}, "relora": "relora", "oft": "oft", "boft": "boft",
    "vera": "vera", "ia3": "ia3",
}  # fmt: skip
OPTIMIZERS: tuple[str, ...] = (
    "adamw", "adamw_8bit", "adamw_4bit", "adafactor", "lion", "lion_8bit", "sophia", "ademamix", "adopt", "came",
    "prodigy", "galore", "galore_8bit", "apollo", "apollo_mini", "badam", "adalomo", "lomo", "muon", "dion",
    "adam_mini", "schedule_free_adamw", "schedule_free_sgd", "sgd", "flash_adamw", "flash_adam", "flash_lion",
    "flash_sgd", "flash_sgdw", "optimi_adamw",
)  # fmt: skip
"""That a CPU has: the paged ones are CUDA's."""
BLOCKS = {"switch_every": 16, "order": "ascending"}
"""Of `badam`: its turns begin with the largest block, the embedding, which lasts until the checkpoint."""
TIMED_STEPS = 8
STEPS = {"quantizer": 3, "adapter": 30, "optimizer": 30}
ROWS = {"quantizer": 8, "adapter": 2, "optimizer": 2}
"""Of a step."""
CELLS: dict[str, tuple[str, Any]] = {
    "quantizer:plain": ("quantizer", None),
    **{f"quantizer:{name}": ("quantizer", name) for name in QUANTIZERS},
    **{f"adapter:{name}": ("adapter", pick) for name, pick in ADAPTERS.items()},
    **{f"optimizer:{name}": ("optimizer", name) for name in OPTIMIZERS},
}
WHOLE_RATES = {
    "adamw": 2e-5, "adamw_8bit": 2e-5, "adamw_4bit": 2e-5, "paged_adamw": 2e-5, "paged_adamw_8bit": 2e-5,
    "adopt": 2e-5, "adam_mini": 2e-5, "ademamix": 2e-5, "came": 2e-5, "sophia": 2e-5, "lion": 5e-6,
    "lion_8bit": 5e-6, "schedule_free_adamw": 1e-4, "flash_adamw": 2e-5, "flash_adam": 2e-5, "flash_lion": 5e-6,
    "optimi_adamw": 2e-5,
}  # fmt: skip
"""Learning rates of optimizers that train the whole model; the entry's own where none is given."""


def recipe(cell: str, output: str) -> dict[str, Any]:
    """SmolLM2 on made-up questions, in fp32, evaluated before the first step and after the last."""
    kind, pick = CELLS[cell]
    tasks = {"name": "tasks", "task": "family"}
    made: dict[str, Any] = {
        "model": "smollm2-135m",
        "data": {
            "train": {**tasks, "count": 240, "seed": 5},
            "eval": {**tasks, "split": "eval", "count": 8, "seed": 1},
        },
        "train": {"max_steps": STEPS[kind], "batch_size": ROWS[kind], "precision": "fp32", "max_length": 256},
        "evaluate": {"evaluators": ["loss"], "every": STEPS[kind], "before": True},
        "checkpoint": {"every": STEPS[kind] // 2},
        "adapter": {"name": "lora", "rank": 8},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "output": output,
    }  # fmt: skip
    if kind == "quantizer":
        del made["checkpoint"]
        made["quantization"] = pick
    elif kind == "adapter":
        made["adapter"] = pick
        if pick in ("full", "lisa") or "freeze" in cell:
            made["optimizer"] = {"name": "adamw", "learning_rate": 2e-5}
    else:
        rate = {"learning_rate": WHOLE_RATES[pick]} if pick in WHOLE_RATES else {}
        more = BLOCKS if pick == "badam" else {}
        made |= {"adapter": "full", "optimizer": {"name": pick, **rate, **more}}
        if pick in ("lomo", "adalomo"):  # no norm of all gradients is known inside backward
            made["train"]["max_grad_norm"] = 0
    return made


def timed_recipe(cell: str, output: str) -> dict[str, Any]:
    """The same, a few steps and nothing between them."""
    made = recipe(cell, output)
    train = {**made["train"], "max_steps": TIMED_STEPS}
    return {name: value for name, value in made.items() if name not in ("evaluate", "checkpoint")} | {"train": train}
