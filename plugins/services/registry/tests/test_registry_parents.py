"""What a version was trained over is verified, and its data count too."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetooth_hooks import UserError
from finetooth_registry import exporter, records
from finetooth_registry.lineage import lineage
from finetooth_registry.verifying import verify_folder, verify_version
from finetooth_saving.artifact import write_folder
from finetooth_saving.origins import as_written, origin_of
from registry_place import Place, holds, write_run


@pytest.fixture
def child(place: Place, tmp_path: Path) -> Path:
    """`bot@v1` and `bot@v2`, each trained over the one before it; the folder of `bot@v2`."""
    place.add("one")
    for number in (0, 1):
        base = tmp_path / f"base{number}"
        assert place("get", f"bot@v{number}", str(base)).exit_code == 0
        run = write_run(tmp_path / f"over{number}", f"over {number}")
        (run / "recipe.yaml").write_text(
            f"model: {base}\nmethod: sft\ndata: {{train: rows.jsonl, classification: {{customer_data: false}}}}\n"
        )
        assert place("add", str(run), "--name", "bot", "--key", str(place.key)).exit_code == 0
    assert place("get", "bot@v2", str(tmp_path / "out")).exit_code == 0
    return tmp_path / "out"


def test_a_version_is_verified_with_all_that_it_was_trained_over(place: Place, child: Path) -> None:
    for links in (verify_version(place.registry, place.registry.version("bot@v2")),
                  verify_folder(child, place.registry.trusted())):  # fmt: skip
        held = holds(links)
        assert all(held.values()) and {"parent bot@v1", "parent bot@v0"} <= held.keys()
    assert all(holds(verify_folder(child, place.registry.trusted())).values())


def test_a_parent_that_is_missing_changed_or_revoked_is_named(place: Place, child: Path, tmp_path: Path) -> None:
    parent = child / "parents/bot@v0.dsse.json"
    content = parent.read_bytes()
    trusted = place.registry.trusted()
    parent.unlink()
    assert holds(verify_folder(child, trusted))["parent bot@v0"] is False
    parent.write_bytes((child / "parents/bot@v1.dsse.json").read_bytes())
    assert holds(verify_folder(child, trusted))["parent bot@v0"] is False
    parent.write_bytes(content)
    (child / "parents/other.dsse.json").write_bytes(content)
    assert holds(verify_folder(child, trusted))["parents/other.dsse.json"] is False
    records.make_key(tmp_path / "new.pem")
    place.registry.trust("new", records.load_signer(tmp_path / "new.pem").public_key)
    assert place("sign", "bot@v2", "--key", str(tmp_path / "new.pem")).exit_code == 0
    assert all(holds(verify_version(place.registry, place.registry.version("bot@v2"))).values())
    place("revoke", "ci")
    held = holds(verify_version(place.registry, place.registry.version("bot@v2")))
    assert held["signature"] and not held["parent bot@v0"]
    refused = place("promote", "bot@v2", "--to", "staging")
    assert isinstance(refused.exception, UserError) and "parent bot@v1" in str(refused.exception)


def test_the_policy_looks_at_the_data_of_parents_too(place: Place, child: Path, tmp_path: Path) -> None:
    place.policy("data: {customer_data: false, licences: [CC0-1.0]}")
    run = tmp_path / "over1"
    (run / "recipe.yaml").write_text(
        f"model: {tmp_path / 'base1'}\ndata: {{classification: {{customer_data: false, licence: CC0-1.0}}}}\n"
    )
    refused = place("add", str(run), "--name", "bot")
    assert "it was trained over bot@v1: the policy accepts the licences" in str(refused.exception)
    assert str(refused.exception).endswith("(train over another base)"), "its own recipe is right"
    before = len(place.registry.events())
    recipe = {"data": {"classification": {"customer_data": False, "licence": "CC0-1.0"}}}
    options = {"model": "bot", "registry": str(place.folder)}
    for base in (str(tmp_path / "base1"), {"name": str(tmp_path / "base1")}):  # before it trains
        with pytest.raises(UserError, match="it was trained over bot@v1: the policy accepts the licences"):
            exporter.admit(options, {**recipe, "model": base})
    assert [event.kind for event in place.registry.events()[before:]] == ["refused", "refused"]
    exporter.admit(options, {**recipe, "model": "tiny"})


def test_the_policy_looks_at_the_data_of_all_that_it_was_trained_over(
    place: Place, child: Path, tmp_path: Path
) -> None:
    place.policy("data: {}")
    begun = write_run(tmp_path / "begun", "begun", customer_data=True)
    last = write_run(tmp_path / "last", "last")

    def recipe(over: Path) -> str:
        return f"model: {over}\ndata: {{classification: {{customer_data: false}}}}\n"

    (last / "recipe.yaml").write_text(recipe(begun))
    assert place("add", str(begun), "--name", "first").exit_code == 0
    assert place("get", "first@v0", str(tmp_path / "first")).exit_code == 0
    for name, over in (("second", "first"), ("third", "second")):
        run = write_run(tmp_path / f"run-of-{name}", name)
        (run / "recipe.yaml").write_text(recipe(tmp_path / over))
        place.policy("data: {customer_data: false}" if name == "third" else "data: {}")
        said = place("add", str(run), "--name", name)
        if name == "second":
            assert place("get", "second@v0", str(tmp_path / "second")).exit_code == 0
    assert "it was trained over first@v0: the policy accepts no customer data" in str(said.exception), "a grandparent"
    refused = place("add", str(last), "--name", "last")
    assert "it was trained over the run begun: the policy accepts no customer data" in str(refused.exception)
    (begun / "merged").mkdir()
    (last / "recipe.yaml").write_text(recipe(begun / "merged"))
    assert "over the run begun" in str(place("add", str(last), "--name", "last").exception), "merged weights of it"
    place.policy("data: {}")
    assert place("add", str(last), "--name", "last").exit_code == 0
    (run,) = [node for node in lineage(place.registry, place.registry.version("last")).sources if node.kind == "run"]
    assert run.title == "begun" and run.sources[0].facts == (("customer_data", "True"),), "ft verify shows it"


def weights_of(run: Path, folder: Path) -> Path:
    """Weights that `ft merge` or `ft export` wrote of a run."""
    origin = as_written(origin_of(run / "artifact"))
    return write_folder(folder, lambda place: (place / "w").write_text("w") and None, {"kind": "merge", **origin})


def test_merged_weights_are_verified_down_to_the_version_that_they_were_made_of(place: Place, tmp_path: Path) -> None:
    place.add("one")
    place.add("two")
    assert place("get", "bot@v0", str(tmp_path / "got")).exit_code == 0
    for name, run in (("of a run", place.runs / "run-0"), ("of a version", tmp_path / "got")):
        folder = weights_of(run, tmp_path / name)
        said = place("verify", str(folder))
        assert said.exit_code == 0 and "the artifact of bot@v0" in said.output, said.output
        assert said.output.startswith(f"weights {name}")
        (folder / "w").write_text("x")
        assert "the file was changed" in place("verify", str(folder)).output
    assert place("add", str(place.runs / "run-0"), "--name", "bot").exit_code == 0  # the same again, not signed
    said = place("verify", str(weights_of(tmp_path / "got", tmp_path / "twice")))
    assert said.exit_code == 0 and "the artifact of bot@v0" in said.output, said.output
    with place.registry._changing() as connection:  # the index alone convinces nobody
        connection.exec_driver_sql("UPDATE versions SET artifact = (SELECT artifact FROM versions WHERE number = 0)")
    assert "the artifact of bot@v0" in place("verify", str(weights_of(tmp_path / "got", tmp_path / "again"))).output
    strange = weights_of(write_run(tmp_path / "strange", "three"), tmp_path / "unknown")
    refused = place("verify", str(strange))
    assert refused.exit_code == 1 and f"no version has the artifact of {tmp_path / 'strange'}" in refused.output
    place("revert", "bot@v0", "--why", "x")
    place("revoke", "ci")
    assert place("verify", str(weights_of(tmp_path / "got", tmp_path / "later"))).exit_code == 1
    (tmp_path / "later/manifest.json").write_text('{"files": {"w": "' + "0" * 64 + '"}, "sha256": "x"}')
    assert "differs from its own SHA-256" in str(place("verify", str(tmp_path / "later")).exception)


def test_the_policy_looks_behind_weights_that_were_merged_elsewhere(place: Place, tmp_path: Path) -> None:
    """From a run, from a version, and from a run that is gone or that holds another artifact now."""
    place.policy("data: {}")
    begun = write_run(tmp_path / "begun", "begun", customer_data=True)
    assert place("add", str(begun), "--name", "first").exit_code == 0
    assert place("get", "first@v0", str(tmp_path / "got")).exit_code == 0
    place.policy("data: {customer_data: false}")
    over: list[Path] = []

    def refusal(merged: Path) -> str:
        over.append(write_run(tmp_path / f"over {len(over)}", "over"))
        (over[-1] / "recipe.yaml").write_text(f"model: {merged}\ndata: {{classification: {{customer_data: false}}}}\n")
        return str(place("add", str(over[-1]), "--name", "last").exception)

    of_run = weights_of(begun, tmp_path / "of run")
    assert "it was trained over the run begun: the policy accepts no customer data" in refusal(of_run)
    assert "it was trained over first@v0: the policy" in refusal(weights_of(tmp_path / "got", tmp_path / "of version"))
    (begun / "artifact/manifest.json").write_text("{}")
    assert "the run begun (not there any more): the policy" in refusal(of_run).replace(str(tmp_path), "")
