"""The reward `code_tests`: 1 for an answer that passes its tests."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from finetooth_hooks import DataError, Options
from finetooth_toolbox.text.column_names import column_of
from pydantic import Field

from finetooth_code.sandbox import Limits, Ran, Sandbox

FENCED = re.compile(r"^```[ \t]*(?:(?:python|py|python3)[ \t]*)?\n(.*?)^```", re.M | re.S | re.I)
MB = 1 << 20


class CodeOptions(Options):
    """Options of the reward `code_tests`."""

    tests: str = "test"
    """Column with the tests: Python that calls functions of the answer, one text or a list. If a text defines `check`,
    it is called with the requested function (HumanEval)."""
    entry_point: str = "entry_point"
    """Column with the name of that function, if rows have one."""
    cases: str | None = None
    """Column with a list of `{input, output}` instead: the answer is a program that reads the input and must write the
    output."""
    continues: bool = False
    """Whether the prompt is code that the answer continues (the original HumanEval). An answer with a block of code, or
    with the whole function, is run alone."""
    partial: bool = False
    """Whether the score is the share of tests that pass, instead of 1 if all pass and 0 otherwise."""
    limited: Literal["zero", "none"] = "zero"
    """Score of an answer that exceeds the limit of time or memory or writes too much: 0, or None, which leaves it
    out."""
    time_limit: float = Field(default=10.0, gt=0)
    """Seconds for an answer with all its tests."""
    memory_mb: int = Field(default=512, ge=64)
    """Memory limit in MB, for all processes of an answer together and for the address space of each."""
    processes: int = Field(default=8, ge=4)
    """Most processes and threads; the sandbox itself needs two."""
    disk_mb: int = Field(default=16, ge=1)
    """Limit in MB for `/tmp`, which lies in memory, and for a single file."""
    packages: bool = False
    """Whether answers may import packages of the environment, not only the standard library."""
    workers: int = Field(default=2, ge=1)
    """Number of answers that run at the same time."""


@dataclass(frozen=True)
class Code:
    """`protocols.Reward`."""

    options: CodeOptions
    sandbox: Sandbox

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """See `protocols.Reward`."""
        return (self.options.cases or self.options.tests,)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]:
        """None for a row without tests.

        Raises:
            DataError: no column holds tests, or the column holds something else.
            PlanError: the sandbox cannot be made.
        """
        column = self.options.cases or self.options.tests
        action = "set the reward's option tests or cases"
        cells = column_of(columns, column, "code_tests", action, " with tests")
        entries = columns.get(self.options.entry_point) or [None] * len(completions)
        rows = columns.get("row_id") or [f"completion {i + 1}" for i in range(len(completions))]
        sources = [
            source_of(completion, prompt if self.options.continues else "", str(entry or ""))
            for prompt, completion, entry in zip(prompts, completions, entries, strict=True)
        ]
        tests = [self._tests(str(row), cell) for row, cell in zip(rows, cells, strict=True)]  # all, before any runs
        with ThreadPoolExecutor(self.options.workers) as pool:
            return list(pool.map(self.score, sources, tests, entries))

    def score(self, source: str, tests: Sequence[Any], entry: Any) -> float | None:
        """One answer; None without tests."""
        if not tests:
            return None
        if self.options.cases:
            return self._scored(self.sandbox.run(source, cases=tests))
        return self._scored(self.sandbox.run(source, tests, entry_point=str(entry or "")))

    def _tests(self, row: str, cell: Any) -> Sequence[Any]:
        """Tests or cases of a row; empty where it has none.

        Raises:
            DataError: the column holds something else; names the row.
        """
        if not cell:
            return ()
        if self.options.cases:
            return _cases(row, cell)
        return [cell] if isinstance(cell, str) else _texts(row, cell)

    def _scored(self, ran: Ran) -> float | None:
        if ran.limit:
            return None if self.options.limited == "none" else 0.0
        return ran.passed / ran.total if self.options.partial else float(ran.passed == ran.total)


def source_of(completion: str, prompt: str = "", name: str = "") -> str:
    """The code of an answer: its last block between fences that defines `name`, else its last block, else all of it,
    after the prompt where the answer only continues it."""
    blocks = FENCED.findall(completion)
    defines = re.compile(rf"^(?:async )?def {re.escape(name)}\b", re.M)
    if blocks:
        return str(next((block for block in reversed(blocks) if name and defines.search(block)), blocks[-1]))
    return completion if not prompt or (name and defines.search(completion)) else prompt + completion


def _texts(row: str, cell: Any) -> list[str]:
    if isinstance(cell, list | tuple) and all(isinstance(text, str) for text in cell):
        return list(cell)
    problem = f"reward code_tests: tests are text or a list of texts, not {cell!r:.60}"
    raise DataError(row, problem, action="fix the column")


def _cases(row: str, cell: Any) -> list[dict[str, str]]:
    try:
        return [{"input": str(case["input"]), "output": str(case["output"])} for case in cell]
    except (TypeError, KeyError):
        problem = f"reward code_tests: cases are a list of mappings with input and output, not {cell!r:.60}"
        raise DataError(row, problem, action="fix the column") from None


def build(options: CodeOptions) -> Code:
    """Builder of the reward `code_tests`.

    Raises:
        PlanError: no sandbox is possible on this machine.
    """
    limits = Limits(
        memory=options.memory_mb * MB,
        processes=options.processes,
        seconds=max(1, round(options.time_limit + 0.5)),
        disk=options.disk_mb * MB,
        file=options.disk_mb * MB,
    )
    packages = (sysconfig.get_path("purelib"),) if options.packages else ()
    sandbox = Sandbox(limits, options.time_limit, packages)
    _ = sandbox.bubblewrap  # refuses here, before a run begins
    return Code(options, sandbox)
