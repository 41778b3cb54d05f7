"""`ft agent-docs` and `ft fetch`: what is there, and that it is the checkout's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from finetooth_hooks import UserError
from finetooth_topics import get_doc, list_topics
from finetooth_topics.commands import CHECKOUT, agent_docs, fetch

ASKED = ("sft", "grpo", "preference_tuning", "reward_modelling", "pretraining", "new_models", "plugins", "debugging")


def said(command, *arguments):
    done = CliRunner().invoke(command, [str(one) for one in arguments], standalone_mode=False, catch_exceptions=False)
    assert done.exception is None, done.exception
    return done.output


def test_topics_are_listed_and_printed():
    assert set(ASKED) < set(list_topics()) and next(iter(list_topics())) == "overview"
    assert "ine-tuning framework" in get_doc() and get_doc().strip() == said(agent_docs).strip()
    for topic, title in list_topics().items():
        assert get_doc(topic).startswith(f"# {title}\n") and f"\n{topic} " in f"\n{said(agent_docs, '--list')}"
    assert json.loads(said(agent_docs, "sft", "--json")) == {"topic": "sft", "text": get_doc("sft")}
    with pytest.raises(UserError, match=r"no topic 'sfd' \(choose of overview, "):
        said(agent_docs, "sfd")


def test_recipes_and_examples_are_copied(tmp_path: Path):
    told = said(fetch, "recipes", "--to", tmp_path).splitlines()
    source = CHECKOUT / "docs" / "recipes"
    assert {Path(line).name for line in told} >= {path.name for path in source.glob("*.yaml")}
    for line in told:
        assert Path(line).read_bytes() == (source / Path(line).relative_to(tmp_path)).read_bytes()
    assert said(fetch, "recipes", "quickstart", "--to", tmp_path / "one").count("\n") == 1
    assert "first_run.ipynb" in said(fetch, "examples", "--to", tmp_path / "examples")


def test_what_is_there_is_not_overwritten(tmp_path: Path):
    (tmp_path / "quickstart.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"quickstart\.yaml exists, and is another file .*nothing was copied"):
        said(fetch, "recipes", "--to", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart.yaml"]
    with pytest.raises(UserError, match="no recipes of name 'quick'"):
        said(fetch, "recipes", "quick", "--to", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--to: .*name a folder that can be written"):
        said(fetch, "recipes", "--to", tmp_path / "file" / "below")
