"""What somebody does to a server's folder and its record while it is down, or as it is killed.

Each has a server of its own, which serves REST alone and takes no part in what is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from attacking.ground import Ground, attack
from attacking.server import Attacked


class Own:
    """A server of one attack, killed after it has written a few lines into its record."""

    def __init__(self, g: Ground, name: str) -> None:
        place = g.server.place / f"own-{name}-{g.number}"
        place.mkdir()
        self.server = Attacked(place, faces=("api",))
        self.server.prepare()
        self.server.start()
        own = Ground(self.server, g.theirs)
        for _ in range(5):
            own.get("/v1/sessions")
        self.folder = self.server.folder
        self.record = self.folder / "audit.jsonl"
        for _ in range(50):  # the record is written beside the answers
            if self.record.exists() and self.record.read_bytes().count(b"\n") >= 5:
                break
            time.sleep(0.1)
        self.server.kill()

    def verify(self) -> str:
        """What `ft audit verify` says of the record; a trailing `!` if it found something."""
        command = [sys.executable, "-m", "finetooth", "audit", "verify", str(self.record)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return (done.stdout + done.stderr).strip()[-300:] + ("!" if done.returncode else "")

    def started(self) -> str:
        """What the server's log says after another start."""
        before = self.server.log.stat().st_size
        try:
            self.server.start()
        except RuntimeError:
            return self.server.log.read_text()[before:] + "refused"
        self.server.stop()
        return self.server.log.read_text()[before:]


def _lines(record: Path) -> list[bytes]:
    return record.read_bytes().splitlines(keepends=True)


@attack("the record's last two lines cut off after kill -9", short=True)
def a_cut_record(g: Ground) -> str:
    own = Own(g, "cut")
    own.record.write_bytes(b"".join(_lines(own.record)[:-2]))
    said, started = own.verify(), own.started()
    assert said.endswith("!"), said
    assert "audit" in started or "record" in started, f"the server says nothing of it: {started[-300:]}"
    assert own.verify().endswith("!"), "the record was healed in silence"
    return said[:120]


@attack("a line of the record rewritten, and all hashes after it recomputed")
def a_rewritten_record(g: Ground) -> str:
    import hashlib

    own = Own(g, "rewritten")
    before, made = "", []
    for n, line in enumerate(_lines(own.record)):
        entry = json.loads(line)
        if n == 2:
            entry["tenant"] = "nobody"
        for name in ("previous", "prev"):
            if name in entry and before:
                entry[name] = before
        entry.pop("hash", None)
        text = json.dumps(entry, separators=(",", ":"))
        before = hashlib.sha256(text.encode()).hexdigest()
        made.append(json.dumps({**entry, "hash": before}, separators=(",", ":")) + "\n")
    own.record.write_text("".join(made))
    said = own.verify()
    assert said.endswith("!"), said
    return said[:120]


@attack("the record and its head removed")
def no_record(g: Ground) -> str:
    own = Own(g, "removed")
    own.record.unlink()
    said, started = own.verify(), own.started()
    assert said.endswith("!"), said
    assert "audit" in started or "record" in started or "refused" in started, started[-300:]
    return said[:120]


@attack("half a line at the record's end, as a full disk leaves it")
def half_a_line(g: Ground) -> str:
    own = Own(g, "half")
    whole = own.record.read_bytes()
    own.record.write_bytes(whole[: len(whole) - 20])
    started = own.started()
    assert "audit" in started or "record" in started, f"the server says nothing of it: {started[-300:]}"
    return "said at the start"


@attack("a folder that everybody may read and write")
def an_open_folder(g: Ground) -> str:
    own = Own(g, "open")
    own.folder.chmod(0o777)
    for file in own.folder.iterdir():
        file.chmod(0o777 if file.is_dir() else 0o666)
    started = own.started()
    mode = own.folder.stat().st_mode & 0o077
    assert not mode or "refused" in started, f"served with mode {mode:o}"
    return "refused" if "refused" in started else "closed to others"


@attack("a second server on the same folder")
def two_servers(g: Ground) -> str:
    place = g.server
    command = [sys.executable, "-m", "finetooth", "serve", "api", "--model", str(place.place / "tiny"), "--folder",
               str(place.folder), "--port", "0"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    return (done.stdout + done.stderr).strip()[-140:]


@attack("an address that others can reach: without a key, without TLS")
def an_open_address(g: Ground) -> str:
    said = []
    for name, keys in (("none", False), ("plain", True)):
        place = g.server.place / f"open-{name}-{g.number}"
        place.mkdir()
        server = Attacked(place)
        if keys:
            server.prepare()
        command = [sys.executable, "-m", "finetooth", "serve", "api", "--model", str(g.server.place / "tiny"),
                   "--folder", str(server.folder), "--port", "0", "--host", "0.0.0.0"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2, done.stdout + done.stderr
        said.append((done.stdout + done.stderr).strip()[-70:])
    return "; ".join(said)
