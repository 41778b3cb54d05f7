"""pluggy's markers under our project name."""

from __future__ import annotations

import pluggy

PROJECT = "finetooth"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
