"""Which rows train: slices, duplicates, held-out rows, several sources; whoever prepares them and however often."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, FinetoothError, Message, RecipeError, Text
from finetooth_hooks.data.examples import Image, Labelled, Placed, PromptCompletion
from finetooth_rows.choices import content, selection
from finetooth_rows.storage.cache import DataCache

Prepare = Callable[..., Any]
Write = Callable[..., Path]

LINES = [f"row {i} of them" for i in range(40)]


def texts(preparation: Any) -> list[str]:
    return [bytes(map(int, (datum.tokens[0], *datum.targets))).decode() for datum in preparation.data]


def ids(preparation: Any) -> list[str]:
    return [datum.id for datum in preparation.data]


@pytest.fixture
def both(context_of: Callable[..., Any], rendering_of: Callable[..., Any]) -> Callable[..., Any]:
    """Prepare both splits as a new process would; returns the preparations and the context."""
    from finetooth_hooks.data.preparation import Limit

    def run(**given: Any) -> tuple[Any, Any, Any]:
        context = context_of(**given)
        rendering = rendering_of(context)
        train = context.prepare("train", rendering, Limit(100, "drop"))
        return train, context.prepare("eval", rendering, Limit(100, "drop")), context

    return run


def source(name: str = "toy_portions", path: str = "rows.txt", **more: Any) -> dict[str, Any]:
    return {"name": name, "path": path, **more}


@pytest.mark.parametrize("name", ["toy_portions", "toy_plain"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"slice": "[:10%]"}, LINES[:4]),
        ({"slice": "[10:20]"}, LINES[10:20]),
        ({"slice": "[-7:]"}, LINES[-7:]),
        ({"slice": "[5:]", "max_rows": 6}, LINES[5:11]),
        ({"max_rows": 9}, LINES[:9]),
        ({"max_rows": 100}, LINES),
    ],
)
def test_a_slice_takes_its_rows(
    name: str, given: dict[str, Any], expected: list[str], prepare: Prepare, write: Write
) -> None:
    write(LINES)
    by_others = ("toy_portions", "[-7:]"), ("toy_plain", "[10:20]")  # each starts two processes
    processes = [{"workers": 2, "cache": "off"}] if (name, given.get("slice")) in by_others else []
    for data in ({"workers": 0, "cache": "off"}, *processes, {}, {}):
        done, context = prepare(data={"train": source(name, **given), **data})
        assert texts(done) == expected
        assert done.report.rows == done.report.used == len(expected)
        assert context.decisions["data.train.rows"].value == len(expected)


def test_a_slice_reads_no_further_and_refuses_only_what_is_in_it(prepare: Prepare, write: Write) -> None:
    write([*LINES[:12], "!broken", *LINES, "?malformed", "bad one"])
    assert texts(prepare(data={"train": source(slice="[:12]")})[0]) == LINES[:12]
    with pytest.raises(DataError, match=r"1 broken, .*rows\.txt:13"):
        prepare(data={"train": source(slice="[:13]")})
    assert texts(prepare(data={"train": source(slice="[13:53]")})[0]) == LINES


def test_max_rows_of_the_section_is_for_training_sources_that_say_nothing(
    both: Callable[..., Any], write: Write
) -> None:
    write(LINES)
    write([f"{line} too" for line in LINES], "more.txt")
    several = [source(), source(path="more.txt", max_rows=7)]
    train, held, _ = both(data={"train": several, "max_rows": 5, "eval": source(path="more.txt", slice="[20:]")})
    assert ids(train) == [f"rows.txt:{i}" for i in range(1, 6)] + [f"more.txt:{i}" for i in range(1, 8)]
    assert len(held.data) == 20


@pytest.mark.parametrize("small", [True, False])
def test_duplicates_are_never_parted(small: bool, both: Callable[..., Any], write: Write, monkeypatch: Any) -> None:
    if small:
        from finetooth_rows import lazy_examples

        monkeypatch.setattr(lazy_examples, "SMALL_ROWS", 1000)
    lines = [f"content {i % 40}" for i in range(200)]
    random.Random(0).shuffle(lines)
    write(lines[:150])
    write(lines[150:], "more.txt")
    several = [source(), source("toy_plain", "more.txt")]
    seen = set()
    for seed in range(4):
        train, held, context = both(data={"train": several, "eval": {"fraction": 0.3, "seed": seed}})
        trained, evaluated = set(texts(train)), set(texts(held))
        assert not trained & evaluated and trained | evaluated == set(lines)
        assert Counter(texts(train)) + Counter(texts(held)) == Counter(lines)
        assert context.decisions["data.eval.rows"].value == len(held.data) == held.report.rows
        assert sum(context.decisions[f"data.train.{i}.rows"].value for i in (0, 1)) == len(train.data)
        seen.add(frozenset(evaluated))
    assert len(seen) == 4


@pytest.fixture
def held_texts(both: Callable[..., Any], write: Write) -> Callable[..., set[str]]:
    def held(lines: list[str], **split: Any) -> set[str]:
        write(lines)
        return set(texts(both(data={"train": source(), "eval": split})[1]))

    return held


@pytest.mark.parametrize(
    ("rows", "fraction", "count"), [(60, 0.05, 3), (60, 0.1, 6), (10, 0.05, 1), (20, 0.01, 1), (90, 0.15, 14)]
)
def test_the_fraction_of_the_different_rows_is_held_out_exactly(
    rows: int, fraction: float, count: int, held_texts: Callable[..., set[str]]
) -> None:
    lines = [f"row {i}" for i in range(rows)]
    for seed in range(3):
        held = held_texts(lines * 2, fraction=fraction, seed=seed)  # equal rows count once
        assert len(held) == count


def test_rows_added_later_move_few_others_and_a_larger_fraction_takes_the_same_first(
    held_texts: Callable[..., set[str]],
) -> None:
    lines = [f"row {i}" for i in range(1000)]
    held = held_texts(lines, fraction=0.1, seed=7)
    assert held < held_texts(lines, fraction=0.2, seed=7)
    later = held_texts(lines + [f"added {i}" for i in range(100)], fraction=0.1, seed=7)
    # 110 of 1,100 are drawn: those of the first 1,000 are 100 with a deviation of 3
    assert len(later) == 110
    moved = held ^ {line for line in later if line.startswith("row")}
    assert len(moved) < 15
    assert moved <= held or not moved & held  # the bound moves one way


@pytest.mark.parametrize(
    ("rows", "said"), [(30, ["data.eval has 3 rows: a score on so few is mostly chance"]), (200, [])]
)
def test_few_held_out_rows_are_said(rows: int, said: list[str], both: Callable[..., Any], write: Write) -> None:
    write([f"row {i}" for i in range(rows)])
    _, _, context = both(data={"train": source(), "eval": {"fraction": 0.1}})
    assert [note.split(" (")[0] for note in context.notes] == said


def test_content_is_all_an_example_says() -> None:
    def conversation(tools: Any = (), **message: Any) -> bytes:
        return content.digest(Conversation((Message("user", "hi"), Message("assistant", "yes", **message)), tools))

    told = [
        conversation(),
        conversation(train=False),
        conversation(reasoning="why"),
        conversation(({"a": 1, "b": 2},)),
        content.digest(Text("hi")),
        content.digest(Text("hi\ud800")),
    ]
    assert len(set(told)) == len(told)
    assert conversation(({"b": 2, "a": 1},)) == told[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_repeated_rows_are_left_out_and_named(workers: int, prepare: Prepare, write: Write) -> None:
    write([*LINES[:10], LINES[3], *LINES[10:20], LINES[3], LINES[12]])
    write([LINES[0], "new", *LINES[:8]], "more.txt")
    several = [source(), source("toy_plain", "more.txt")]
    done, context = prepare(data={"train": several, "deduplicate": "exact", "workers": workers, "cache": "off"})
    assert texts(done) == [*LINES[:20], "new"]
    reason = "the same as an earlier row"
    assert done.report.dropped == {reason: 12}
    assert done.report.dropped_ids == {
        reason: ("rows.txt:11", "rows.txt:22", "rows.txt:23", "more.txt:1", "more.txt:3")
    }
    assert done.report.rows == 33 and done.report.used == 21
    assert "9 repeat an earlier one" in context.decisions["data.train.1.rows"].reason


def test_near_rows_are_left_out(prepare: Prepare, write: Write) -> None:
    pytest.importorskip("datasketch")
    words = [f"word{i}" for i in range(60)]
    base = " ".join(words)
    near = " ".join([*words[:-1], "other"])  # 57 of 59 runs of three words are the same
    far = " ".join(words[30:] + [f"new{i}" for i in range(30)])  # 28 of 88
    write([base, near, far, *LINES[:6]])
    from finetooth_hooks.data.preparation import Limit

    for threshold, expected in ((0.8, [base, far]), (0.25, [base]), (1.0, [base, near, far])):
        given = {"deduplicate": "near", "near_threshold": threshold, "train": source(slice="[:3]", portion=2000)}
        done, _ = prepare(limit=Limit(1000, "drop"), data=given)
        assert texts(done) == expected
        left = {"nearly the same as an earlier row": 3 - len(expected)} if len(expected) < 3 else {}
        assert done.report.dropped == left
    exact = {"deduplicate": "near", "train": source(portion=2000)}
    write([base, near, base, far])
    done, _ = prepare(limit=Limit(1000, "drop"), data=exact)
    assert done.report.dropped == {"nearly the same as an earlier row": 1, "the same as an earlier row": 1}


def test_words_are_compared_without_case_and_without_spaces_where_there_are_none() -> None:
    assert content.shingles(Text("One two, THREE four")) == {"one two three", "two three four"}
    assert content.shingles(Text("one")) == {"one"}
    assert content.shingles(Text("")) == {""}
    assert content.shingles(Text("你好世界")) == {"你 好 世", "好 世 界"}
    said = Conversation((Message("user", "a b"), Message("assistant", "c")))
    assert content.shingles(said) == {"a b c"}


def test_rows_that_differ_in_what_no_word_says_are_not_nearly_the_same() -> None:
    """A question about another picture, the other verdict on an answer, a call with other numbers, signs alone."""
    pytest.importorskip("datasketch")

    def asked(picture: bytes) -> Conversation:
        shown = Message("user", "Describe the picture.", media=(Placed(0, Image("image", content=picture)),))
        return Conversation((shown, Message("assistant", "A red ball.")))

    def called(x: int) -> Conversation:
        call = {"name": "add", "arguments": {"x": x, "y": x + 1}}
        return Conversation((Message("user", "Do it."), Message("assistant", "", tool_calls=(call,))))

    for make, one, other in (
        (asked, b"1", b"2"),
        (lambda label: Labelled("Why?", "Because it is so.", label), True, False),
        (called, 1, 2),
        (lambda sign: PromptCompletion(sign, "!"), "\U0001f642", "\U0001f600"),
    ):
        near = content.NearRows(0.8)
        assert [near.seen(make(of)) for of in (one, other, one)] == [False, False, True], make(one)


def weighted(first: float, second: float, **mix: Any) -> dict[str, Any]:
    sources = [source(weight=first), source("toy_plain", "more.txt", weight=second)]
    return {"train": sources, **({"mix": mix} if mix else {})}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (weighted(1, 1, rows=50), (40, 10)),
        (weighted(2, 0.5), (80, 5)),
        (weighted(0.5, 2.5), (20, 25)),
        (weighted(1, 1, temperature=2), (40, 20)),  # 40 * sqrt(10 / 40)
        (weighted(1, 1, temperature="even"), (40, 40)),
        (weighted(1, 3, temperature="even", rows=20), (5, 15)),
        (weighted(1, 1, rows=26), (21, 5)),
    ],
)
def test_an_epoch_takes_sources_in_their_shares(
    data: dict[str, Any], expected: tuple[int, int], prepare: Prepare, write: Write
) -> None:
    write(LINES)
    write([f"{line} too" for line in LINES[:10]], "more.txt")
    outcomes = []
    by_others = [{"workers": 2, "cache": "off"}] if expected in ((20, 25), (5, 15)) else []  # each starts two processes
    for how in ({"workers": 0}, {}, *by_others):
        done, context = prepare(data={**data, **how})
        outcomes.append((ids(done), texts(done)))
        for index, (name, size) in enumerate((("rows.txt", 40), ("more.txt", 10))):
            assert context.decisions[f"data.train.{index}.rows"].value == expected[index]
            taken = Counter(id_.partition("~")[0] for id_ in ids(done) if id_.startswith(name))
            assert sum(taken.values()) == expected[index]
            whole, rest = divmod(expected[index], size)
            wanted = Counter({whole + 1: rest, whole: size - rest} if whole else {1: rest})
            assert Counter(taken.values()) == +wanted  # whole repeats, and some once more
        assert len(set(ids(done))) == sum(expected) == done.report.used
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_the_rest_follows_the_seed(prepare: Prepare, write: Write) -> None:
    write(LINES)
    drawn = [
        tuple(ids(prepare(data={"train": source(weight=0.5), "mix": {"rows": 20, "seed": s}})[0])) for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 20 and list(drawn[0]) == sorted(drawn[0], key=lambda id_: int(id_.partition(":")[2]))


def test_the_plan_says_what_became_of_each_source(both: Callable[..., Any], write: Write) -> None:
    write([*LINES, *LINES[:5]])
    train = source(slice="[:42]", max_rows=41, weight=2)
    _, held, context = both(data={"train": train, "eval": {"fraction": 0.2}, "deduplicate": "exact"})
    left = 40 - len(held.data)
    assert context.decisions["data.train.rows"].reason == (
        f"[:42] and max_rows 41 take 41 rows; 1 repeats an earlier one; {len(held.data)} held out; the {left} left are "
        "taken 2 times an epoch"
    )
    assert context.decisions["data.train.rows"].value == 2 * left


@pytest.mark.slow
def test_a_choice_is_remembered_and_every_option_tells(
    both: Callable[..., Any], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start goes through no rows to choose them; whatever changes the choice makes another key."""
    monkeypatch.setattr(selection, "REMEMBERED_FROM", 0)
    chosen = []
    choose = selection.choose
    monkeypatch.setattr(selection, "choose", lambda *args: chosen.append(1) or choose(*args))
    write([*LINES, *LINES[:5]])
    base: dict[str, Any] = {"train": source(), "eval": {"fraction": 0.2}}
    outcomes = []
    variants: list[dict[str, Any]] = [
        {},
        {"eval": {"fraction": 0.3}},
        {"eval": {"fraction": 0.2, "seed": 1}},
        {"deduplicate": "exact"},
        {"deduplicate": "exact", "train": source(slice="[:42]")},
        {"train": source(slice="[1:]")},
        {"train": source(weight=1.5)},
        {"mix": {"rows": 30}},
        {"mix": {"rows": 30, "seed": 1}},
        {"max_rows": 44},
    ]
    for index, variant in enumerate(variants, start=1):
        for told in ("made now and kept", "from the cache"):
            train, held, context = both(data={**base, **variant})
            assert told in context.decisions["data.cache.train"].reason
            outcomes.append((ids(train), ids(held), train.report, context.decisions["data.train.rows"]))
            assert len(chosen) == index
        assert outcomes[-1] == outcomes[-2]
    keys = {entry.key for entry in DataCache().entries()}
    assert len(keys) == 2 * len(variants)
    damaged = sorted((DataCache().root / "choices").glob("*.npz"))
    assert len(damaged) == len(variants)
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-50])
    assert (ids(both(data=base)[0]), len(chosen)) == (outcomes[0][0], len(variants) + 1)
    write(LINES[:30])
    assert set(texts(both(data=base)[0])) < set(LINES[:30])
    DataCache().prune()
    assert not list((DataCache().root / "choices").glob("*.npz"))


def test_notes_are_told_once_and_only_of_rows_that_are_taken(prepare: Prepare, write: Write) -> None:
    write(["note a", *LINES[:9], "note b", *LINES[9:20], "note b", "note c"])
    for workers in (0, 2, 0):
        data = {"train": source(slice="[5:23]"), "deduplicate": "exact", "workers": workers}
        _, context = prepare(data=data)
        assert context.notes == ["note b first seen in rows.txt:11"]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"train": source(slice="[100:200]")}, r"data\.train: the slice \[100:200\] takes none of its 40 rows"),
        ({"train": source(slice="[:1%]")}, r"data\.train: the slice \[:1%\] takes none of its 40 rows"),
        ({"train": source(slice="[50%:-21]")}, r"data\.train: the slice \[50%:-21\] takes none of its 40 rows"),
        ({"train": source(slice="[5:2]")}, r"data\.train\.slice: \[5:2\] takes no rows of any source: its end"),
        ({"train": source(slice="[:0]")}, r"data\.train\.slice: \[:0\] takes no rows"),
        ({"train": source(slice="[-3:-5]")}, r"data\.train\.slice: \[-3:-5\] takes no rows"),
        ({"train": source(slice="[:x]")}, r"data\.train\.slice: '\[:x\]' is not a slice of rows"),
        ({"train": source(weight=0)}, r"data\.train\.weight: must be more than 0"),
        ({"train": source(max_rows="5")}, r"data\.train\.max_rows: expected a whole number"),
        ({"train": source(), "eval": source(weight=2)}, r"data\.eval\.weight: held-out rows are each taken once"),
        ({"train": source(), "eval": {"fraction": 1.5}}, r"data\.eval\.fraction: must be less than 1, got 1\.5"),
        ({"train": source(), "eval": {"fraction": 0.5, "sed": 1}}, r"data\.eval\.sed: .*did you mean data\.eval\.seed"),
        ({"train": source(slice="[:1]"), "eval": {"fraction": 0.5}}, r"data\.eval\.fraction: no two training rows"),
        ({"train": source(), "mix": {"temperature": 2}}, r"data\.mix: data\.train is one source"),
        ({"train": source(), "mix": {"temperature": 0}}, r"data\.mix: temperature must be more than 0"),
        ({"train": [source(), source(weight=0.001)]}, r"data\.train\.1: of its 40 rows an epoch would take none"),
        ({"train": [source(), source(weight=1e12)]}, r"data\.mix: an epoch would take more than 2,147,483,648 rows"),
        ({"train": [source()] * 2, "mix": {"rows": 10**12}}, r"data\.mix: an epoch would take more than 2,147"),
        ({"train": source(), "near_threshold": 0.5}, r"data: 'near_threshold' is set, but rows are not compared"),
        ({"train": source(sha256="ab")}, r"data\.train\.sha256: must match"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(data: Any, line: str, both: Callable[..., Any], write: Write) -> None:
    write(LINES)
    with pytest.raises(FinetoothError, match=line) as told:
        both(data=data)
    assert "\n" not in str(told.value) and told.value.exit_code == 2


def test_a_reference_with_a_slice_and_a_slice_is_one_too_many(prepare: Prepare, write: Write) -> None:
    write(LINES)
    assert texts(prepare(data={"train": source(path="rows.txt[:7]")})[0]) == LINES[:7]
    with pytest.raises(RecipeError, match=r"data\.train\.slice: \[:7\] is a slice too"):
        prepare(data={"train": source(path="rows.txt[:7]", slice="[:5]")})
