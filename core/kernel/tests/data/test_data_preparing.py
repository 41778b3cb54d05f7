"""Whoever prepares the rows (this process, several others, the cache), the outcome is that of the plainest way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import FinetoothError
from finetooth_hooks.data.preparation import Limit
from finetooth_rows import splits as preparing
from finetooth_rows import workers
from finetooth_rows.storage.cache import DataCache

Prepare = Callable[..., Any]
Write = Callable[..., Path]

PLAIN = [f"row {'x' * (i % 7)}{i}." for i in range(30)]
SCENARIOS: dict[str, tuple[list[str], Limit | None]] = {
    "good": (PLAIN, Limit(100, "drop")),
    "dropped": (PLAIN, Limit(8, "drop")),
    "cut": ([*PLAIN, "." * 9 + "a"], Limit(8, "truncate")),
    "whole": ([*PLAIN, "....", "xy"], None),
    "weighted": (["Hi! There!", "LOUD!", "LOUDER!"] * 5, Limit(100, "drop")),
    "noted": ([*PLAIN[:7], "note b", "note a", *PLAIN, "note a", "note c", "note b"], Limit(100, "drop")),
    "raised": ([*PLAIN, "bad one"], Limit(8, "raise")),
    "unusable": ([*PLAIN, *(f"bad {i}" for i in range(7)), "a..."], Limit(100, "drop")),
    "one unusable": ([*PLAIN, "bad one"], Limit(100, "drop")),
    "malformed": (["bad first", *PLAIN, *(f"?{i}" for i in range(7)), "long enough to be refused"], Limit(20, "raise")),
    "broken": (["bad first", *PLAIN, "?a", "!a", *PLAIN, "!b", "long enough to be refused"], Limit(20, "raise")),
    "twins": ([*PLAIN, "=3", "bad one"], Limit(100, "drop")),
    "nothing left": (PLAIN, Limit(2, "drop")),
    "several": ([*PLAIN, ">one|-|two", ">-", *PLAIN, ">three|-"], Limit(8, "drop")),
    "several bad": ([*PLAIN, ">bad one|-|two|bad two"], Limit(100, "drop")),
    "a bug": ([*PLAIN, "bug"], Limit(100, "drop")),
}


def cannot_be_used(problems: list[str], rows: int, noun: str = "rows", *, one: bool = False) -> str:
    if len(problems) == 1 and not one:
        return problems[0]
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    sentences: dict[str, list[str]] = {}  # each is said once, behind all its rows
    for problem in problems[:5]:
        id_, _, sentence = problem.partition(": ")
        sentences.setdefault(sentence, []).append(id_)
    told = "; ".join(f"{', '.join(ids)}: {sentence}" for sentence, ids in sentences.items())
    return f"{len(problems)} of {rows} {noun} cannot be used: {told}{more}"


def plainest(lines: list[str], limit: Limit | None, broken: bool) -> dict[str, Any] | str:
    """Tokens, weights, ids and counts, or the first error, as one reads them off the specification."""
    ids = [f"rows.txt:{line[1:] if broken and line[0] == '=' else i}" for i, line in enumerate(lines, start=1)]
    named = list(zip(ids, lines, strict=True))
    bad = [id_ for id_, line in named if line[0] == "!" and broken]
    malformed = [f"{id_}: malformed" for id_, line in named if line[0] == "?"]
    wrong = [f"rows.txt: {len(bad)} broken, {len(lines) - len(bad)} good: {one}" for one in bad[:1]]
    wrong += [cannot_be_used(malformed, len(lines) - len(bad))] if malformed else []
    if wrong:
        return f"{'; '.join(wrong)} ({'; '.join(['mend it'] * bool(bad) + ['rewrite it'] * bool(malformed))})"
    twin = next((id_ for i, id_ in enumerate(ids) if id_ in ids[:i]), None)
    if twin:
        return f"{twin}: two rows have this id (name each file or source once)"
    kept, dropped, errors, longer, cut = [], {}, [], [], 0
    examples = [(f"{id_}#{k}", part) if line.count("|") else (id_, part) for id_, line in named
                for k, part in enumerate(line.removeprefix(">").split("|"), start=1)]  # fmt: skip
    noun = "rows" if len(examples) == len(lines) else "examples"
    for id_, line in examples:
        if line == "-":
            dropped.setdefault("a dash", []).append((id_, 1))
            continue
        if line.startswith("bug"):
            return "TypeError: a bug in the renderer"
        if line.startswith("bad"):
            errors.append((f"{id_}: content: cannot say {line}", "rephrase it"))
            continue
        tokens = list(line.encode())
        weights = [0.0 if c == "." else 2.0 if c == "!" else 1.0 for c in line]
        if limit is not None:
            if not any(weights[1:]):
                problem = f"{id_}: nothing to train on: no assistant message or completion with text"
                errors.append((problem, "remove the row, or choose what trains with method.train_on"))
                continue
            if len(tokens) - 1 > limit.max_length:
                if limit.excess_length == "raise":
                    longer.append(f"{id_}: {len(tokens) - 1} tokens, more than train.max_length={limit.max_length}")
                    continue
                weights = weights[: limit.max_length + 1]
                reason = "longer than train.max_length"
                if limit.excess_length == "truncate" and any(weights[1:]):
                    tokens, cut = tokens[: limit.max_length + 1], cut + 1
                else:
                    if limit.excess_length == "truncate":
                        reason = "nothing to train on after truncation"
                    dropped.setdefault(reason, []).append((id_, len(tokens) - 1))
                    continue
        kept.append((id_, tokens, weights))
    if longer or errors:
        action = "raise train.max_length, or set train.excess_length to drop, truncate, truncate_turns or split"
        actions = [action] * bool(longer) + [action for _, action in errors[:1]]
        told = [cannot_be_used(longer, len(examples), noun, one=True)] if longer else []
        told += [cannot_be_used([problem for problem, _ in errors], len(examples), noun)] if errors else []
        return f"{'; '.join(told)} ({'; '.join(actions)})"
    if not kept:
        assert limit is not None
        (reason, rows), *_ = dropped.items()
        tokens = min(length for _, length in rows)
        told = f"no row can be used: {len(rows)} {reason} {limit.max_length} (the shortest has {tokens} tokens)"
        return f"data.train: {told} (raise train.max_length or change the data)"
    notes: dict[str, str] = {}
    for id_, line in named:
        if line.startswith("note "):
            notes.setdefault(line, f"{line} first seen in {id_}")
    longest = max(range(len(kept)), key=lambda i: len(kept[i][1]))
    return {
        "data": kept,
        "rows": (len(lines), len(examples)),
        "dropped": {reason: len(rows) for reason, rows in dropped.items()},
        "dropped_ids": {reason: tuple(id_ for id_, _ in rows[:5]) for reason, rows in dropped.items()},
        "changed": {"truncated to train.max_length": cut} if cut else {},
        "tokens": sum(len(tokens) - 1 for _, tokens, _ in kept),
        "trained_tokens": sum(sum(w != 0 for w in weights[1:]) for _, _, weights in kept),
        "longest": (len(kept[longest][1]) - 1, kept[longest][0]),
        "remarks": sum(line.isupper() for line in lines),
        "notes": list(notes.values()),
    }


def outcome(prepare: Prepare, **given: Any) -> dict[str, Any] | str:
    """What `plainest` gives, as it was prepared."""
    try:
        done, context = prepare(**given)
    except FinetoothError as error:
        return re.sub(r"^plugin \S+: (TypeError: .*) \[.*\] \(fix it, .*\)$", r"\1", str(error))
    except TypeError as error:
        return f"TypeError: {error}"
    data = []
    for datum in done.data:
        weights = datum.fields["weights"]
        assert (weights != 0).tolist() == datum.mask.tolist()
        data.append((datum.id, [int(datum.tokens[0]), *map(int, datum.targets)], list(map(float, weights))))
    report = done.report
    return {
        "data": data,
        "rows": (report.rows, report.examples),
        "dropped": report.dropped,
        "dropped_ids": report.dropped_ids,
        "changed": report.changed,
        "tokens": report.tokens,
        "trained_tokens": report.trained_tokens,
        "longest": (report.longest, report.longest_id),
        "remarks": done.remarks.get("shouts", 0),
        "notes": context.notes,
    }


def expected(lines: list[str], limit: Limit | None, *, broken: bool) -> dict[str, Any] | str:
    found = plainest(lines, limit, broken)
    if isinstance(found, dict):  # the weight of a first token is never used
        found["data"] = [(id_, tokens, weights[1:]) for id_, tokens, weights in found["data"]]
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_matters_not_who_prepares(name: str, prepare: Prepare, write: Write) -> None:
    lines, limit = SCENARIOS[name]
    write(lines)
    wanted = expected(lines, limit, broken=True)
    assert outcome(prepare, limit=limit, data={"workers": 0}) == wanted
    assert outcome(prepare, limit=limit, data={"workers": 0}) == wanted  # from the cache, if it is no error
    assert bool(DataCache().entries()) == isinstance(wanted, dict)


FIRST = ("dropped", "noted", "broken", "several bad", "a bug")
"""Processes take seconds to start: these show all that they send; the others are for `make slow`."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS]
)
def test_it_matters_not_if_processes_prepare(name: str, prepare: Prepare, write: Write) -> None:
    lines, limit = SCENARIOS[name]
    write(lines)
    wanted = expected(lines, limit, broken=True)
    assert outcome(prepare, limit=limit, data={"workers": 2, "cache": "off"}) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["noted", "malformed"])
def test_rows_of_a_plain_source_are_sent_too(name: str, prepare: Prepare, write: Write) -> None:
    lines, limit = SCENARIOS[name]
    write(lines)
    wanted = expected(lines, limit, broken=False)
    for count in (0, 2):
        given = {"source": "toy_plain", "data": {"workers": count, "cache": "off"}}
        assert outcome(prepare, limit=limit, **given) == wanted


def logged(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in which every rendered row leaves the number of its process."""
    log = Path("log").absolute()
    monkeypatch.setenv("FT_TEST_LOG", str(log))
    return log


def test_small_data_stay_in_memory(prepare: Prepare, write: Write) -> None:
    write(PLAIN[:4])
    limit = Limit(100, "drop")
    assert outcome(prepare, limit=limit) == expected(PLAIN[:4], limit, broken=True)
    assert DataCache().entries() == []


@pytest.mark.slow
def test_auto_starts_workers_only_when_there_is_much_to_do(
    prepare: Prepare, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(PLAIN)
    monkeypatch.setattr(preparing, "usable_cores", lambda: 2)
    _, context = prepare(data={"cache": "off"})
    assert context.decisions["data.workers.train"].value == 0
    monkeypatch.setattr(preparing, "STARTUP", 0.0)
    log = logged(monkeypatch)
    done, context = prepare(data={"cache": "off"})
    assert context.decisions["data.workers.train"].value == 2
    processes = set(log.read_text().split())
    assert str(os.getpid()) in processes and len(processes) >= 2  # it began here
    assert [datum.id for datum in done.data] == [datum.id for datum in prepare(data={"workers": 0})[0].data]


def test_a_second_start_renders_nothing(prepare: Prepare, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(PLAIN)
    log = logged(monkeypatch)
    first, context = prepare(data={"workers": 0})
    assert "made now and kept" in context.decisions["data.cache.train"].reason
    rendered = log.read_text()
    second, context = prepare()
    assert log.read_text() == rendered and len(rendered.splitlines()) == len(PLAIN)
    assert "from the cache, prepared 2" in context.decisions["data.cache.train"].reason
    assert second.report == first.report
    assert "data.workers.train" not in context.decisions


@pytest.mark.slow
def test_a_worker_that_dies_is_named_and_all_are_gone(
    prepare: Prepare, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write([*PLAIN, "die", *PLAIN])
    log = logged(monkeypatch)
    with pytest.raises(FinetoothError, match=r"worker \d of 2 \(process \d+\) died, killed by SIGKILL.*data\.workers"):
        prepare(limit=None, data={"workers": 2})
    for process in set(log.read_text().split()) - {str(os.getpid())}:
        assert not Path(f"/proc/{process}").exists()
    assert not DataCache().entries() and not list(DataCache().root.glob("entries/.*"))


def test_a_worker_that_cannot_begin_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {
        "worker": "finetooth_core.data.worker",
        "recipe": {"model": "toy"},
        "plugins": ["./none.py"],
        "blocked": [],
        "base": str(folder),
    }
    with (
        pytest.raises(FinetoothError, match=r"none\.py"),
        workers.Workers(1, job, lambda *a, **k: None, lambda note: None),  # type: ignore[arg-type, return-value]
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_everything_at_once(folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write([*PLAIN, *["slow"] * 9])
    log = logged(monkeypatch)
    program = textwrap.dedent(f"""
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        from finetooth_core import api
        from finetooth_core.planning.context import RunContext
        from finetooth_rows import lazy_examples
        from finetooth_hooks.data.preparation import Rendering
        from pathlib import Path
        lazy_examples.SMALL_ROWS = 4
        recipe = {{"model": {{"name": "toy", "family": "toy"}},
                   "data": {{"train": {{"name": "toy_portions", "path": "rows.txt"}}, "workers": 2}},
                   "plugins": [{str(folder / "preparation_plugin.py")!r}]}}
        session = api.session(recipe)
        context = RunContext(session.recipe, session.plugins.catalog, Path("run"), session.plugins)
        entry = context.catalog.get("format", "toy_lines").entry
        context.prepare("train", Rendering(entry.build.partition(":")[0] + ":rendering"), None)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 100
    while not log.exists() or len(log.read_text().split()) < len(PLAIN) + 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    started = set(log.read_text().split())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0 and "KeyboardInterrupt" in said
    for one in started:
        assert not Path(f"/proc/{one}").exists()
    assert not list((folder / "cache" / "entries").iterdir())


MEMORY = """
import resource, sys
from pathlib import Path
from finetooth_core import api
from finetooth_core.planning.context import WORKER
from finetooth_core.planning.context import RunContext
from finetooth_hooks.data.preparation import Rendering
workers, plugin, path = sys.argv[1:]
data = {"train": {"name": "toy_portions", "path": path, "portion": 100000}, "workers": int(workers), "cache": "off"}
recipe = {"model": {"name": "toy", "family": "toy"}, "data": data, "plugins": [plugin]}
session = api.session(recipe)
context = RunContext(session.recipe, session.plugins.catalog, Path("run"), session.plugins)
entry = context.catalog.get("format", "toy_lines").entry
done = context.prepare("train", Rendering(entry.build.partition(":")[0] + ":rendering"), None)
status = Path("/proc/self/status").read_text()  # its own ru_maxrss begins with the size of who started it
peak = int(status.partition("VmHWM:")[2].split()[0])
workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(len(done.data), done.data.token_count, peak / 1024, workers / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("count", [0, 2])
def test_memory_does_not_grow_with_the_rows(count: int, folder: Path, write: Write) -> None:
    peaks = []
    for rows in (3_000, 30_000):  # 30,000 rows of 1,000 tokens: 120 MB as int32, far more as Python objects
        write([f"{i:010d}" + "x" * 990 for i in range(rows)], f"{rows}.txt")
        arguments = [str(count), str(folder / "preparation_plugin.py"), f"{rows}.txt"]
        run = subprocess.run(
            [sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=True, timeout=500
        )
        found, tokens, *peak = map(float, run.stdout.split())
        assert (found, tokens) == (rows, 1000 * rows)
        peaks.append(peak)
    growth = np.subtract(peaks[1], peaks[0])
    assert growth.max() < 30, peaks
