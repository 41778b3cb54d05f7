"""axolotl's type `alpaca`: rows in the prompt of Stanford Alpaca, whatever the model's own markup is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_importer.account import Account

FORMAT: Mapping[str, Any] = {"name": "instruction", "separator": "\n\n### Input:\n"}
"""The format of rows that are written in Alpaca's own prompt, its input under a heading of its own."""


def are_alpaca(datasets: Any) -> bool:
    """Whether all datasets are of that type, and none of its relatives."""
    each = datasets if isinstance(datasets, list) else [datasets]
    return all(isinstance(dataset, dict) and dataset.get("type") == "alpaca" for dataset in each)


def prompts_of_alpaca(account: Account, key: str, datasets: Sequence[Any], own_prompt: bool) -> None:
    """Rows that axolotl writes in Alpaca's prompt take the renderer of that name if the data hold no others."""
    note = "axolotl writes these rows with Alpaca's prompt; finetooth writes them like all others"
    setting = "data.format"
    if own_prompt:
        note = "the same prompt; if a vocabulary begins a text with a blank (Llama 2), the answer begins without it"
        setting = "data.renderer"
        account.set(setting, {"name": "alpaca", "preamble": True})
    for place, dataset in enumerate(datasets):
        if isinstance(dataset, dict) and str(dataset.get("type")).startswith("alpaca"):
            account.inside(f"{key}[{place}].type", dataset["type"], "otherwise", setting, note)
