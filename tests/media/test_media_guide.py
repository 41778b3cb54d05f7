"""What the guide tells a reader to type, with a tiny model that hears."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from finetooth_core.cli import main

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "images-sound-video.md"


@pytest.mark.slow
def test_the_guides_commands_run(
    qwen_audio: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = GUIDE.read_text(encoding="utf-8")
    for name, text in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL):
        Path(name).write_text(text.replace("Qwen/Qwen2-Audio-7B-Instruct", str(qwen_audio)), encoding="utf-8")
    (commands,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    said = {}
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        if program == "python":
            runpy.run_path(arguments[0])
        else:
            assert main(arguments) == 0, line
        said[arguments[0]] = capsys.readouterr().out
    assert "[audio 0.5 s -> 12 tokens]" in said["data"]
    assert (tmp_path / "runs" / "heard" / "artifact").is_dir()
