"""Steps of packs: where a tool fills places of so many tokens with several rows, a step here has as many rows as that.

Rows never see each other in either; but how many an optimizer step takes decides how many steps there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetooth_hooks import DataReport, UserError

from finetooth_importer.account import Account, Packs, name_of
from finetooth_importer.tools import rows

Planned = Callable[[Mapping[str, Any]], Sequence[DataReport]]
"""Reports on the rows of a recipe, one for each split."""


def packed(account: Account, key: str, *others: str) -> None:
    """A key that asks for packs, once the recipe has its batch and its longest row; only supervised rows are packed."""
    method = name_of(account.recipe.get("method"))
    packs = str(account.get(key, False)).lower() not in ("false", "0", "none")
    if method == "pretrain":
        account.passes(key, "pretrain trains windows of train.max_length")
    elif not packs or method != "sft":
        account.passes(key, "it is off" if not packs else f"method {method} does not pack rows")
    elif account.has(key):
        account.refuse(key, _pack(account), unless=None)
    for other in others:
        account.passes(other, "train.batch_size is the number of rows in a step")


def by_tokens(account: Account, key: str, times: int) -> None:
    """A key with the tokens that go through at once, whatever rows they are; 0 is off.

    Args:
        times: how often gradients are added up.
    """
    if account.whole(key, 0) > 0 and name_of(account.recipe.get("method")) == "sft":
        account.refuse(key, _pack(account, packs=(times, account.whole(key, 0))), unless=None)
    account.passes(key, "it is off, or the method makes its own batches")


def always(account: Account, key: str, why: str) -> None:
    """The packs of a tool that nothing asks for.

    Args:
        key: under which they are listed.
        why: there are some.
    """
    account.inside(key, account.get(key), "not taken", note=_pack(account, why))


def _pack(account: Account, why: str = "", packs: tuple[int, int] | None = None) -> str:
    """Note that a step has packs; what is to be said of them.

    Args:
        packs: how many, and their tokens; None: as many as the batch has, of the longest row.
    """
    train = account.recipe["train"]
    count, length = packs or (train["batch_size"], train["max_length"])
    note = (
        f"{why}a step there has {count} packs of {length} tokens, here {train['batch_size']} rows: set "
        f"train.batch_size to {count * length:,} tokens divided by the length of a row, which ft data check shows"
    )
    account.packs = Packs(count, length, note)
    return note


def fit(account: Account, planned: Planned) -> None:
    """Give a step as many rows as the packs of the tool's have, where the rows are here to be counted."""
    packs = account.packs
    if packs is None or not _here(account.recipe):
        return
    about: dict[str, Any] = {key: account.recipe[key] for key in ("model", "data", "method") if key in account.recipe}
    train = {
        key: account.recipe["train"][key] for key in ("max_length", "excess_length") if key in account.recipe["train"]
    }
    try:
        reports = planned({**about, "train": {**train, "accept_memory": True}, "trackers": []})
    except UserError:
        return  # what is wrong with the recipe, its check says
    report = next((survey for survey in reports if survey.split == "train" and survey.used), None)
    if report is None:
        return
    length = report.tokens / report.used
    made = max(1, min(round(packs.tokens / length), report.used))
    account.set("train.batch_size", made)
    note = (
        f"a step there has {packs.count} packs of {packs.length} tokens; so many have {made} of your {report.used} "
        f"rows, of {length:.0f} tokens each"
    )
    account.lines = [
        replace(line, outcome="otherwise", setting="train.batch_size", note=note) if line.note == packs.note else line
        for line in account.lines
    ]


def _here(recipe: Mapping[str, Any]) -> bool:
    """Whether all training rows are in local files."""
    train = recipe.get("data", {}).get("train")
    paths = [
        source.get("path") if isinstance(source, dict) else source
        for source in (train if isinstance(train, list) else [train])
    ]
    return bool(paths) and all(isinstance(path, str) and rows.exists(path) for path in paths)
