"""docs/attacks.md, from how a campaign went."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attacking.campaign import Campaign
from attacking.judges import QUIET

OPENING = f"""\
# Attacks on a server

`make attacks` starts `ft serve api tinker` on a tiny model with bounded memory and descriptors, lets one tenant train
and sample, and attacks it as another, with valid keys and without; it draws this page. `.ci/run` runs the short form
of it.

<!-- not run: it takes minutes -->
```sh
make attacks
```

The server has held against an attack when its answers were as they ought to be (refused by name, nothing taken that was
cut), when `/health`, asked by another process five times a second, always answered within {QUIET.health:g} s, and when
the other tenant's turns (training, a step, sampling) took at most {QUIET.times:g} times their time just before, in the
mean (and {QUIET.noise:g} s, which is the machine's own noise). Over all attacks the server may not end, no answer may
be of the server's fault or hold what was planted in the other tenant's names and rows, and its memory has to come back
to its level.
"""


def render(found: Campaign, machine: Mapping[str, object], day: str) -> str:
    """The page.

    Args:
        machine: what it ran on.
        day: as YYYY-MM-DD.
    """
    failed = len(found.failed)
    lines = [
        OPENING,
        f"On {day}, {machine.get('processor', 'an unknown processor')}, {found.bound}:",
        f"**{failed} of {len(found.verdicts)} attacks failed**, {found.restarts} restarts, memory "
        f"{found.level / 2**20:.0f} MiB before, {found.end / 2**20:.0f} MiB after, "
        f"{found.peak / 2**20:.0f} MiB at most.",
        "",
    ]
    lines += [f"- {_plain(one)}" for one in found.wrong]
    lines += ["", "| attack | what became of it | other tenant | `/health` | memory |", "|---|---|---:|---:|---:|"]
    for one in found.verdicts:
        said = f"**{_plain(one.wrong)}**" if one.wrong else _plain(one.said)
        lines.append(
            f"| {_plain(one.what)} | {said} | {one.ratio:.1f}x | {one.health:.2f} s | {one.grown / 2**20:+.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text for a cell of a table, without the folders of the machine that it comes from."""
    text = re.sub(r"(?<![\w.])/(?:home|root|work|tmp|Users|private|var)/[^\s'\"`,;:)\]]*", "a folder", text)
    flat = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return flat.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")[:400]
