"""What the topics for coding assistants name is there: commands, settings, entries."""

from __future__ import annotations

import re

import pytest
from finetooth_core.cli import main
from finetooth_core.settings.recipe import setting_names
from finetooth_topics import get_doc, list_topics

CODE = re.compile(r"`([^`\n]+)`")


@pytest.mark.parametrize("topic", sorted(list_topics()))
def test_commands_and_settings_exist(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = set(setting_names())
    sections = {name.partition(".")[0] for name in settings}
    for code in CODE.findall(get_doc(topic)):
        words = code.split()
        if words[0] == "ft" and len(words) > 1:
            call = [word for word in words[1:3] if re.fullmatch(r"[a-z][a-z-]*", word)]
            assert main([*call[:1], "--help"]) == 0, code
            shown = capsys.readouterr().out
            for option in re.findall(r"--[a-z-]+", code):
                inner = [*call, *(["run"] if call == ["doctor"] else []), "--help"]
                assert main(inner) == 0 and option in shown + capsys.readouterr().out, code
            for option in re.findall(r"(--[a-z-]+) .*\[required\]", shown) if len(words) > 2 else ():
                assert option in code, code
        name = re.match(r"([a-z_]+)\.([a-z_]+)(:|$)", code)
        if name and name[1] in {"train", "evaluate", "checkpoint"} & sections:
            assert f"{name[1]}.{name[2]}" in settings, code


def test_examples_are_recipes() -> None:
    import yaml
    from finetooth_core.settings.recipe import load

    for topic in list_topics():
        for block in re.findall(r"```yaml\n(.*?)```", get_doc(topic), re.S):
            assert load(yaml.safe_load(block)).model.name
