"""finetooth: fine-tune language models.

`finetooth.run(recipe)` trains; `finetooth.engine(recipe)` gives the engine to drive step by step. Importing this
package
is cheap; frameworks are imported when a recipe needs them.
"""

from __future__ import annotations

from finetooth_core.api import Session, engine, run, session

__all__ = ["Session", "engine", "run", "session"]
