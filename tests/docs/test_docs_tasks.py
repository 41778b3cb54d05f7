"""The page of tasks keeps its promise: few commands, little to read, and the table says how many and how much."""

from __future__ import annotations

import math
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "tasks.md"
WORDS_A_MINUTE = 200


def test_each_task_is_short_and_the_table_is_right() -> None:
    head, *tasks = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert len(tasks) == 10
    told = re.findall(r"^\| \[(.+?)\]\(.+?\) \| (\d+) \| (\d+) min \|$", head, re.M)
    counted = []
    for task in tasks:
        title, _, text = task.partition("\n")
        scripts = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
        commands = sum(len(script.strip().splitlines()) for script in scripts)
        minutes = math.ceil(len(re.sub(r"<!--.*?-->", "", text).split()) / WORDS_A_MINUTE)
        assert 1 <= commands <= 10 and minutes <= 5, title
        counted.append((title, str(commands), str(minutes)))
    assert told == counted
