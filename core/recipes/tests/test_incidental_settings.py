"""Settings that decide no number are marked where they are defined; a plan's hash leaves out these and no others."""

from __future__ import annotations

from finetooth_core.settings.recipe import Recipe
from finetooth_recipes.incidental import incidental_settings, is_among, without

SETTINGS = frozenset(
    {
        "output",
        "export",
        "trackers",
        "profile",
        "sweep",
        "data.accept_dropped",
        "data.cache",
        "data.cache_gb",
        "data.opening",
        "data.workers",
        "train.accept_memory",
    }
)


def test_these_are_marked() -> None:
    assert frozenset(incidental_settings(Recipe)) == SETTINGS


def test_only_they_are_left_out() -> None:
    given = {"model": "m", "output": "x", "data": {"train": "t", "cache": "off"}, "train": {"output": 1}}
    assert without(given, SETTINGS) == {"model": "m", "data": {"train": "t"}, "train": {"output": 1}}


def test_decisions_about_their_parts_are_left_out() -> None:
    assert is_among("data.cache.train", SETTINGS) and is_among("trackers", SETTINGS)
    assert not is_among("data.cached", SETTINGS) and not is_among("data", SETTINGS)
