"""`ft verify` prints what a version was made of, down to the raw data; curves show which step was selected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from finetooth_hooks import UserError
from finetooth_registry import records
from finetooth_registry.command import registry as command
from finetooth_registry.commands.verify import verify
from finetooth_registry.registry import Registry
from finetooth_registry.writing import write_version

CLASSES = {"customer_data": False, "licence": "CC0-1.0"}
ABOUT = {"base_digest": "b" * 64, "model": "tiny", "recipe_sha256": "c" * 64, "classification": CLASSES}


class Place:
    """A registry with two versions: the second was trained over the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "registry"
        self.registry = Registry.create(self.folder)
        self.registry.trust("ci", records.make_key(folder / "ci.pem"))
        parents: list[Any] = []
        for number in range(2):
            (folder / "weights").write_text(str(number))
            about = {**ABOUT, "data": {"data.train.sha256": str(number) * 64}, "parents": parents}
            signer = records.load_signer(folder / "ci.pem")
            made = self.registry.add("bot", {"weights": folder / "weights"}, about, signer, metrics={})
            statement = records.digest(self.registry.record(made))
            parents = [{"name": "bot", "number": number, "statement": statement}]

    def verify(self, what: str, *options: str) -> Result:
        return CliRunner().invoke(verify, [what, *options, "--registry", str(self.folder)], env={"COLUMNS": "200"})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_chain_goes_from_the_raw_data_to_what_is_served(place: Place, tmp_path: Path) -> None:
    place.registry.decide(place.registry.version("bot@v1"), "production", {}, None)
    said = place.verify("bot@production")
    assert said.exit_code == 0, said.output
    lines = [line.strip("\u2502\u2514\u251c\u2500 `|+-").split("  ") for line in said.output.splitlines()[:7]]
    shown = [(line[0], line[1], "".join(line[2:])) for line in lines]
    classes = "customer_data: False, licence: CC0-1.0"
    assert shown[0][0] == "version bot@v1" and shown[0][2] == "1 files, in production"
    assert shown[1] == ("data data.train", "1" * 12, classes) and shown[2][:2] == ("recipe recipe", "c" * 12)
    assert shown[3][0] == "version bot@v0" and shown[4] == ("data data.train", "0" * 12, classes)
    assert shown[6][:2] == ("base tiny", "b" * 12)
    assert "parent bot@v0" in said.output
    assert f"data.train {'1' * 12}" in said.output and "{'" not in said.output
    write_version(place.registry, place.registry.version("bot@v1"), tmp_path / "out")
    from_folder = place.verify(str(tmp_path / "out"), "--trust", str(key_file(tmp_path, place)))
    assert from_folder.exit_code == 0, from_folder.output
    assert [line[:20] for line in from_folder.output.splitlines()[1:7]] == [
        line[:20] for line in said.output.splitlines()[1:7]
    ]


def test_a_key_for_what_the_registry_s_keys_verify_is_not_ignored(place: Place, tmp_path: Path) -> None:
    said = place.verify("bot@v1", "--trust", str(key_file(tmp_path, place)))
    assert "--trust: bot@v1 is not a folder of ft registry get" in str(said.exception)
    (tmp_path / "binary").write_bytes(b"\x80")
    write_version(place.registry, place.registry.version("bot@v1"), tmp_path / "out")
    said = place.verify(str(tmp_path / "out"), "--trust", str(tmp_path / "binary"))
    assert isinstance(said.exception, UserError) and "binary: not a public key" in str(said.exception)


def key_file(folder: Path, place: Place) -> Path:
    (folder / "ci.pub").write_text(records.key_to_json(place.registry.trusted()["ci"]))
    return folder / "ci.pub"


def test_a_broken_link_ends_with_exit_code_1(place: Place, tmp_path: Path) -> None:
    write_version(place.registry, place.registry.version("bot@v1"), tmp_path / "out")
    (tmp_path / "out/parents/bot@v0.dsse.json").unlink()
    said = place.verify(str(tmp_path / "out"))
    assert said.exit_code == 1 and "its record is missing" in said.output and "its record is not there" in said.output
    (tmp_path / "empty").mkdir()
    refused = place.verify(str(tmp_path / "empty"))
    assert isinstance(refused.exception, UserError) and "has no record.dsse.json" in str(refused.exception)


def trained(folder: Path, rows: int, losses: dict[int, float], kept: int) -> dict[str, Path]:
    """Files of a run that measured a loss by step."""
    folder.mkdir()
    about = {"event": "evaluation", "name": "loss"}
    lines = [{**about, "step": step, "metrics": {"loss": value}} for step, value in losses.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = [{"split": "train", "used": rows, "tokens": rows * 10}, {"split": "eval", "used": 9}]
    (folder / "result.json").write_text(json.dumps({"status": "done", "artifact_step": kept, "rows": data}))
    return {name: folder / name for name in ("metrics.jsonl", "result.json")}


def test_curves_show_the_minimum_that_was_selected_and_the_size_of_the_corpus(place: Place, tmp_path: Path) -> None:
    for number, (rows, kept) in enumerate(((700, 20), (1400, 20), (2800, 40))):
        losses = {step: 1.0 - rows / 10_000 + abs(step - 20) / 100 for step in (10, 20, 30, 40)}
        files = trained(tmp_path / f"run-{number}", rows, losses, kept)
        place.registry.add("curvy", files, {"classification": CLASSES}, None, metrics={})
    where = ("--registry", str(place.folder))
    said = CliRunner().invoke(command, ["curves", "curvy", "--json", "--svg", str(tmp_path / "drawn"), *where])
    made = json.loads(said.output)
    assert [(one["version"], one["rows"], one["step"], one["minimum"]) for one in made] == [
        ("curvy@v0", 700, 20, pytest.approx(0.93)),
        ("curvy@v1", 1400, 20, pytest.approx(0.86)),
        ("curvy@v2", 2800, 20, pytest.approx(0.72)),
    ]
    assert [one["selected"] for one in made] == [True, True, False]
    assert made[0]["points"] == [[step, pytest.approx(0.93 + abs(step - 20) / 100)] for step in (10, 20, 30, 40)]
    assert (tmp_path / "drawn/by-step.svg").read_text().count("<polyline") == 3
    assert "minimum of eval/loss by training rows" in (tmp_path / "drawn/by-corpus.svg").read_text()
    table = CliRunner().invoke(command, ["curves", "curvy", *where], env={"COLUMNS": "200"}).output
    assert [line.split()[:6] for line in table.splitlines() if "curvy@" in line][2] == [
        "curvy@v2", "registered", "2800", "0.72", "20", "40"
    ]  # fmt: skip
    assert table.count("(not the lowest)") == 1
    for words, problem in (
        (("curves", "bot"), "no version of bot measured eval/loss"),
        (("curves", "nothing"), "no model is called nothing"),
        (("curves", "curvy", "--metric", "eval/x"), "no version of curvy measured eval/x"),
        (("curves", "curvy", "--svg", str(tmp_path)), "exists"),
    ):
        assert problem in str(CliRunner().invoke(command, [*words, *where]).exception)
