"""Checks that what a builder returns derives from the base of its kind, and says what it can do in its words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from finetooth_hooks.bases import BASES, AdapterBase, SourceBase
from finetooth_hooks.capabilities import CAPABILITIES
from finetooth_hooks.data.problems import Problems
from finetooth_hooks.data.sources import Portion
from finetooth_hooks.entries import Adapter
from finetooth_hooks.errors import PlanError

from finetooth_kit.checks import EntryCase, check_for, expect, fail

_REFUSES: Mapping[str, Mapping[str, Callable[[Any, EntryCase], Any]]] = {
    "source": {
        "portions": lambda source, case: (
            source.portions(),
            source.read(Portion(b"")),
            source.refusal(Problems(), 0),
        ),
    },
    "face": {"stdio": lambda face, case: asyncio.run(face.stdio(None))},
    "adapter": {
        "disable": lambda adapter, case: adapter.disabled(object()),
        "additions": lambda adapter, case: adapter.additions(case.folder),
        "fold": lambda adapter, case: adapter.fold(object(), case.folder, precision="fp32", device="cpu"),
        "fold_tensors": lambda adapter, case: adapter.fold_tensors(object(), case.folder),
    },
    "loader": {
        "tensors": lambda loader, case: loader.tensors(str(case.folder), framework="torch", precision="fp32"),
    },
}
"""What must be refused where a word is not said."""


@check_for(*(kind for kind in BASES if kind not in ("engine", "tokenizer")))
def says_what_it_can_do(case: EntryCase) -> None:
    """What is built derives from the base class of its kind; `capabilities` are words of the contract, and a method
    whose word is not among them refuses."""
    kind = case.entry.kind
    built = case.build()
    base = BASES[kind]
    derived = f"an object of a class derived from finetooth_hooks.{base.__name__}"
    expect(isinstance(built, base), case.called, f"a {type(built).__name__}", derived)
    words = built.capabilities
    expect(isinstance(words, frozenset), "built.capabilities", repr(words), "a frozenset")
    unknown = sorted(words - set(CAPABILITIES[kind]))
    expect(not unknown, "built.capabilities", f"unknown {unknown}", f"of {sorted(CAPABILITIES[kind])}")
    for word, ask in _REFUSES.get(kind, {}).items():
        if word not in words:
            _expect_refusal(word, ask, built, case)


def _expect_refusal(word: str, ask: Callable[[Any, EntryCase], Any], built: Any, case: EntryCase) -> None:
    called = f"what {case.called} built, without the capability {word!r}, asked for it"
    try:
        result = ask(built, case)
    except PlanError:
        return
    fail(called, result, "a PlanError")


@check_for("adapter")
def entry_and_adapter_agree(case: EntryCase) -> None:
    """`can_disable` of the entry, which the plan reads, and the capability `disable` of the adapter are one."""
    assert isinstance(case.entry, Adapter)
    adapter = case.build()
    can = isinstance(adapter, AdapterBase) and "disable" in adapter.capabilities
    expect(can == case.entry.can_disable, "'disable' in built.capabilities", can, f"{case.entry.can_disable}, as entry")


@check_for("source")
def portions_are_the_rows(case: EntryCase) -> None:
    """A source with the capability `portions` gives, portion by portion, the rows that `rows` gives."""
    source: Any = case.build()
    derived = isinstance(source, SourceBase)
    if not derived or "portions" not in source.capabilities:
        return
    rows = [row.id for row in source.rows()]
    read = [getattr(row, "id", row) for portion in source.portions() for row in source.read(portion)]
    expect(read == rows, "ids of rows read portion by portion", read[:5], f"{rows[:5]}, those of rows()")
