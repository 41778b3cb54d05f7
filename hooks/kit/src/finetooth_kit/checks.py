"""What a check is, how it says what went wrong, and the register of checks by kind of entry."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from finetooth_hooks.entries import Attention, Entry
from finetooth_hooks.errors import PlanError
from finetooth_toolbox.attention_choice import missing_packages

from finetooth_kit.builders import build, filled, options_model
from finetooth_kit.fake_context import FakeContext


class CheckFailed(AssertionError):
    """A plugin does not keep the contract; the message says what was called, what came and what was expected."""


class CheckSkipped(Exception):
    """A check does not apply here: a package is not installed, or the entry gives no example."""


def fail(called: str, got: Any, expected: str) -> NoReturn:
    """Fail with the three things a reader needs."""
    raise CheckFailed(f"called:   {called}\ngot:      {got}\nexpected: {expected}")


def expect(condition: Any, called: str, got: Any, expected: str) -> None:
    """Fail unless the condition holds."""
    if not condition:
        fail(called, got, expected)


def expect_instance(value: Any, types: type | tuple[type, ...], called: str) -> None:
    """Fail unless the value is of one of the types."""
    names = " or ".join(cls.__name__ for cls in (types if isinstance(types, tuple) else (types,)))
    expect(isinstance(value, types), called, f"a {type(value).__name__}: {value!r}"[:300], names)


@dataclass(frozen=True)
class EntryCase:
    """One entry under test, with a scratch folder of its own.

    Attributes:
        entry: what is tested.
        siblings: all entries of the plugin, which its builders may pick.
        folder: scratch.
        installed: entries of other installed plugins may be picked too.
    """

    entry: Entry
    siblings: tuple[Entry, ...]
    folder: Path
    installed: bool = False

    @property
    def called(self) -> str:
        """How messages name the builder."""
        return f"{self.entry.build} with example {dict(self.entry.example)}"

    def context(self, seed: int = 0) -> FakeContext:
        """A fresh context over the scratch folder."""
        return FakeContext(self.folder, entries=self.siblings, installed=self.installed, seed=seed)

    def build(self, context: FakeContext | None = None) -> Any:
        """The instance built from the entry's example.

        Raises:
            CheckSkipped: the entry has required options and gives no example for them, or says that it needs a package
                that is not installed; or attention says that this machine cannot compute it.
        """
        lacking = missing_packages(self.entry.serves.packages) if isinstance(self.entry, Attention) else ""
        if lacking:
            raise CheckSkipped(lacking)
        required = [name for name, field in options_model(self.entry).model_fields.items() if field.is_required()]
        missing = [name for name in required if name not in self.entry.example]
        if missing:
            raise CheckSkipped(f"no example for the required option {', '.join(missing)}: give the entry `example`")
        for name, text in self.entry.example_files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        try:
            return build(self.entry, filled(self.entry.example, self.folder), context or self.context())
        except PlanError as error:
            if isinstance(self.entry, Attention):
                raise CheckSkipped(error.problem) from error
            raise


CheckFn = Callable[[EntryCase], None]
ANY = "any"
_CHECKS: dict[str, list[CheckFn]] = {}


def check_for(*kinds: str) -> Callable[[CheckFn], CheckFn]:
    """Register a check for entries of these kinds; its function name is the check's name."""

    def register(function: CheckFn) -> CheckFn:
        for kind in kinds:
            _CHECKS.setdefault(kind, []).append(function)
        return function

    return register


def checks_for(kind: str) -> tuple[CheckFn, ...]:
    """All checks for a kind of entry, those for any entry first."""
    return (*_CHECKS.get(ANY, ()), *_CHECKS.get(kind, ()))


@dataclass(frozen=True)
class Check:
    """One check of one subject; call it.

    Attributes:
        subject: `loss:dpo`, or `plugin:acme.plugin` for what concerns the whole module.
        name: of the check.
        function: does it; raises CheckFailed or CheckSkipped.
        expected_failure: why it is known to fail; empty if it must pass.
    """

    subject: str
    name: str
    function: Callable[[], None]
    expected_failure: str = ""

    @property
    def id(self) -> str:
        """`loss:dpo-masked_targets_do_not_matter`."""
        return f"{self.subject}-{self.name}"

    def __call__(self) -> None:
        self.function()


def entry_check(function: CheckFn, entry: Entry, siblings: tuple[Entry, ...], installed: bool) -> Check:
    """Bind a check to an entry; each call gets a fresh scratch folder."""

    def run() -> None:
        with tempfile.TemporaryDirectory(prefix="finetooth-check-") as folder:
            function(EntryCase(entry, siblings, Path(folder), installed))

    return Check(f"{entry.kind}:{entry.name}", function.__name__, run)


Status = Literal["passed", "failed", "skipped", "expected_failure"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        subject: `loss:dpo`.
        check: its name.
        status: `failed` also if an expected failure passed.
        message: why, unless it passed.
    """

    subject: str
    check: str
    status: Status
    message: str = ""


def run_check(check: Check) -> CheckResult:
    """Run one check; nothing but Ctrl-C escapes, and what it prints is dropped."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            check()
    except CheckSkipped as skipped:
        return CheckResult(check.subject, check.name, "skipped", str(skipped))
    except Exception as error:
        if check.expected_failure:
            return CheckResult(check.subject, check.name, "expected_failure", check.expected_failure)
        message = str(error) if isinstance(error, CheckFailed) else f"{type(error).__name__}: {error}"
        return CheckResult(check.subject, check.name, "failed", message)
    if check.expected_failure:
        return CheckResult(
            check.subject, check.name, "failed", f"passes, but was expected to fail: {check.expected_failure}"
        )
    return CheckResult(check.subject, check.name, "passed")
