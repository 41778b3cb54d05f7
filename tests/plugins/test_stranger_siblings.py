"""Siblings of the stranger's plugin, each broken in its own way: named with distribution, file and remedy, and in
nobody's way but theirs who pick or name them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HEAD = "from finetooth_hooks import Loss, hookimpl\n\n"
HOOK = f"{HEAD}@hookimpl\ndef ft_losses():\n"


def yields(name: str, package: str = "nowhere") -> str:
    return f"    yield Loss(name={name!r}, build='{package}.loss:build', summary='a loss')\n"


# plugin source, what it requires, problem, file, remedy
BROKEN = {
    "acme-raises": (
        f"{HEAD}raise RuntimeError('no luck')\n",
        (),
        "RuntimeError: no luck",
        "plugin.py:3",
        "-p no:acme-raises",
    ),
    "acme-misspells": (
        f"{HEAD}@hookimpl\ndef ft_loses():\n{yields('acme_misspelt')}",
        (),
        "ft_loses is not a hook; the nearest is ft_losses",
        "plugin.py:3",
        "rename it to ft_losses",
    ),
    "acme-undecorated": (
        f"{HEAD}def ft_losses():\n{yields('acme_undecorated')}",
        (),
        "ft_losses lacks its decorator",
        "plugin.py:3",
        "put @hookimpl above it",
    ),
    "acme-wrong-type": (
        f"{HOOK}{yields('acme_right')}    yield {{'name': 'acme_wrong'}}\n",
        (),
        "ft_losses yields a dict",
        "plugin.py:3",
        "it must yield Loss entries",
    ),
    "acme-next": (
        f"{HOOK}{yields('acme_next')}",
        ("finetooth-hooks>=9,<10",),
        "it needs finetooth-hooks",
        "METADATA",
        "pip install --upgrade finetooth",
    ),
    "acme-needy": (
        f"import nonesuch_module\n{HOOK}{yields('acme_needy')}",
        ("finetooth-hooks>=2,<3", "nonesuch>=3"),
        "No module named 'nonesuch_module'",
        "plugin.py:1",
        "pip install 'nonesuch>=3'",
    ),
}
LATE = "import nonesuch_module\ndef build(options, context): ...\n"
SOUND = {
    "acme-late": f"{HOOK}{yields('acme_late', 'acme_late')}",
    "acme-one": f"{HOOK}{yields('acme_same', 'acme_one')}",
    "acme-two": f"{HOOK}{yields('acme_same', 'acme_two')}",
}
GOOD = """
    from finetooth_hooks import Context, Contribution, LossResult, NoOptions
    from finetooth_hooks import arrays as xp
    def build(options: NoOptions, context: Context):
        def nll(outputs, data, state):
            each = xp.where(data.mask, data.fields["weights"] * outputs["logprobs"], 0.0)
            return LossResult({"nll": Contribution(-xp.sum(each))})
        return nll
"""


@pytest.fixture(scope="module")
def siblings(
    new_prefix: Callable[..., Any], distribution_files: Callable[..., dict[str, str]], tiny_model: Path
) -> Any:
    prefix = new_prefix("siblings")
    files = {
        name: distribution_files(name, source, requires=requires or ("finetooth-hooks>=2,<3",))
        for name, (source, requires, *_) in BROKEN.items()
    }
    for name, source in SOUND.items():
        files[name] = distribution_files(name, source, modules={"loss.py": LATE if name == "acme-late" else GOOD})
    prefix.install(files)
    row = {"prompt": "What is 1 plus 1?", "completion": "2"}
    (prefix.work / "rows.jsonl").write_text(json.dumps(row) + "\n")
    recipe = {
        "model": str(tiny_model),
        "data": {"train": "rows.jsonl", "renderer": "chatml"},
        "train": {"max_steps": 1, "max_length": 64},
    }
    (prefix.work / "recipe.yaml").write_text(json.dumps(recipe))
    return prefix


def test_each_is_named_with_distribution_file_and_remedy(siblings: Any) -> None:
    result = siblings.ft("plugins", "list")
    assert result.code == 0
    for name, (_, _, problem, file, remedy) in BROKEN.items():
        lines = [line for line in result.out.splitlines() if line.startswith(f"broken: {name} 1.2.3: ")]
        assert len(lines) == 1, result.out
        for part in (problem, file, remedy, str(siblings.folder)):
            assert part in lines[0]
    assert not any(line.startswith(name) for name in BROKEN for line in result.out.splitlines())


def test_the_doctor_finds_each(siblings: Any) -> None:
    result = siblings.ft("plugins", "doctor", "--fast", *BROKEN, "acme-late", "acme-one")
    assert result.code == 2
    for name in (*BROKEN, "acme-late"):
        assert f"FAULT  {name} 1.2.3" in result.out
    assert "No module named 'nonesuch_module'" in result.out
    assert "ok     acme-one 1.2.3" in result.out
    assert "note: loss 'acme_same' is also brought by acme-two:acme_same" in result.out


PICKED = {
    "acme_right": (
        "acme-wrong-type 1.2.3: method.loss: loss 'acme_right' is brought by a broken plugin",
        "ft_losses yields a dict",
    ),
    "acme_needy": (
        "method.loss: no loss 'acme_needy'",
        "broken plugins that may bring it",
        "No module named 'nonesuch_module'",
    ),
    "acme_same": ("method.loss", "acme-one:acme_same", "acme-two:acme_same"),
    "acme_late": ("acme-late: loss 'acme_late' cannot be imported: No module named 'nonesuch_module'",),
}


@pytest.mark.slow
def test_only_a_run_that_picks_one_stops(siblings: Any) -> None:
    picks = [f"method={{name: sft, loss: {loss}}}" for loss in PICKED]
    full_name = "method={name: sft, loss: 'acme-two:acme_same'}"  # settles a name that two bring
    results = siblings.fts(
        *(["check", "recipe.yaml", *more] for more in ([], [full_name], *([pick] for pick in picks)))
    )
    for result in results[:2]:
        assert result.code == 0, result.err
        for name in BROKEN:
            assert sum(f"{name} 1.2.3" in line for line in result.err.splitlines()) == 1
    for parts, result in zip(PICKED.values(), results[2:], strict=True):
        assert result.code == 2
        (line,) = (line for line in result.err.splitlines() if line.startswith("error: "))
        for part in parts:
            assert part in line


def test_naming_one_stops(siblings: Any) -> None:
    results = siblings.fts(*(["--plugins", name, "--help"] for name in BROKEN))
    for (name, (_, _, problem, _, remedy)), result in zip(BROKEN.items(), results, strict=True):
        assert result.code == 2
        assert result.err.startswith(f"error: {name} 1.2.3: ")
        assert problem in result.err
        assert remedy in result.err


def test_a_blocked_one_is_silent(siblings: Any) -> None:
    result = siblings.ft("plugins", "list", *(part for name in BROKEN for part in ("-p", f"no:{name}")))
    assert result.code == 0
    assert "broken" not in result.out
    assert "blocked: acme-raises" in result.out
