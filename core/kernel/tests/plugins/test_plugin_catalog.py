"""Names resolve to one entry, or to one clear line."""

from __future__ import annotations

import pytest
from finetooth_core.plugins.catalog import Catalog, Registered
from finetooth_core.plugins.faults import Fault
from finetooth_hooks import Loss, Method, Optimizer, PluginError

INDEX = {"loss": {"kto": ["acme-kto"], "dpo": ["acme-a", "acme-b"]}}


def loss(name: str, distribution: str, default: bool = False) -> Registered:
    return Registered(Loss(name=name, build="m:f", default=default), distribution, "1.0", "m", "m.py")


ONE = loss("hinge", "acme-a", default=True)
CATALOG = Catalog(
    [
        ONE,
        loss("dpo", "acme-a"),
        loss("dpo", "acme-b"),
        loss("dpo", "local/ci.py"),
        Registered(Method(name="sft", build="m:f"), "acme-a", "1.0"),
        Registered(Optimizer(name="adam", build="m:f", default=True), "acme-a", "1.0"),
        Registered(Optimizer(name="sgd", build="m:f", default=True), "acme-b", "1.0"),
    ],
    index=INDEX,
)


def message(kind: str, name: str, catalog: Catalog = CATALOG, setting: str = "") -> str:
    with pytest.raises(PluginError) as caught:
        catalog.get(kind, name, setting=setting)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bare_and_full_names() -> None:
    assert CATALOG.get("loss", "hinge") is ONE
    assert CATALOG.get("loss", "acme-a:hinge") is ONE
    assert CATALOG.get("loss", "acme-b:dpo").distribution == "acme-b"
    assert CATALOG.get("loss", "local/ci.py:dpo").distribution == "local/ci.py"


def test_a_bare_name_with_two_sources_names_them_all() -> None:
    text = message("loss", "dpo", setting="method.loss")
    assert text.startswith("method.loss: loss 'dpo' is brought by ")
    for name in ("acme-a:dpo", "acme-b:dpo", "local/ci.py:dpo"):
        assert name in text


def test_an_unknown_name_tells_what_is_installed_what_is_near_and_what_brings_it() -> None:
    assert message("loss", "hing", setting="method.loss") == (
        "method.loss: no loss 'hing'; installed: dpo, hinge (did you mean 'hinge'?)"
    )
    assert "pip install acme-kto)" in message("loss", "kto")
    assert "did you mean acme-a:hinge?" in message("loss", "acme-b:hinge")
    assert "'sft' is a method, not a loss" in message("loss", "sft")
    assert "none is installed" in message("reward", "x")


def test_a_blocked_package_is_not_told_to_be_installed() -> None:
    text = message("loss", "kto", Catalog([], blocked=["acme-kto"], index=INDEX))
    assert "acme-kto brings it and is blocked: leave out -p no:acme-kto" in text


def test_broken_plugins_are_named() -> None:
    opaque = Fault("acme-kto", "1.0", "p.py:1", "it cannot be imported: ImportError: x", "pip install x")
    text = message("loss", "kto", Catalog([ONE], [opaque], index=INDEX))
    assert "broken plugins that may bring it: acme-kto 1.0 (it cannot be imported: ImportError: x)" in text
    assert "pip install acme-kto" not in text
    known = Fault("acme-c", "2.0", "c.py:3", "ft_step lacks its decorator", "put it there", offers=("loss:orpo",))
    text = message("loss", "orpo", Catalog([ONE], [known], index=INDEX))
    assert text == (
        "acme-c 2.0: loss 'orpo' is brought by a broken plugin: ft_step lacks its decorator [c.py:3] (put it there)"
    )


def test_default() -> None:
    assert CATALOG.default("loss") is ONE
    with pytest.raises(PluginError, match=r"optimizer: several .*acme-a:adam, acme-b:sgd"):
        CATALOG.default("optimizer", setting="optimizer")
    with pytest.raises(PluginError, match="no method is the default; installed: sft"):
        CATALOG.default("method")


def test_all_is_sorted_and_kinds_are_checked() -> None:
    assert [r.full_name for r in CATALOG.all("loss")] == ["acme-a:dpo", "acme-b:dpo", "local/ci.py:dpo", "acme-a:hinge"]
    with pytest.raises(ValueError, match="'losses' is not a kind"):
        CATALOG.all("losses")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hinge", ["acme-a:hinge"]),
        ("loss:hinge", ["acme-a:hinge"]),
        ("acme-b:dpo", ["acme-b:dpo"]),
        ("loss:acme-b:dpo", ["acme-b:dpo"]),
        ("dpo", ["acme-a:dpo", "acme-b:dpo", "local/ci.py:dpo"]),
    ],
)
def test_find(text: str, expected: list[str]) -> None:
    assert [r.full_name for r in CATALOG.find(text)] == expected


def test_what_is_not_found_is_named() -> None:
    with pytest.raises(PluginError, match="'hinge' is a loss, not a method"):
        CATALOG.find("method:hinge")
