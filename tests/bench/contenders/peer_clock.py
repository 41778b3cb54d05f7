"""The clock of every peer that trains with transformers' Trainer or a descendant of it: what each step took, its loss,
and the rows that really went in."""

from __future__ import annotations

from typing import Any

from meter import Meter, rows_digest


class PeerClock:
    """Counts what goes through `Trainer.training_step`.

    Args:
        meter: told of every step.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._loss = 0.0
        self._seen: list[tuple[Any, Any, Any]] = []

    def watch(self) -> Any:
        """Watch the trainers of this process; call it before one is made.

        Returns:
            The callback that it needs.
        """
        from transformers import Trainer, TrainerCallback

        clock, step = self, Trainer.training_step

        def watched(trainer: Any, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
            clock._seen.append((inputs["input_ids"], inputs.get("attention_mask"), labels_of(inputs)))
            loss = step(trainer, model, inputs, *args, **more)
            clock._loss += float(loss)  # as it is: the log rounds it
            return loss

        class Steps(TrainerCallback):  # type: ignore[misc]
            """Where a step begins and ends, whatever it accumulates."""

            def on_step_begin(self, *args: Any, **more: Any) -> None:
                clock._meter.begin()

            def on_step_end(self, *args: Any, **more: Any) -> None:
                clock._meter.step(clock._loss)
                clock._loss = 0.0

        Trainer.training_step = watched
        return Steps()

    def work(self) -> dict[str, Any]:
        """What `Meter.trained` asks for. Rows are padded to a rectangle, all of which is computed, the logits too.
        Those of a trainer without padding stand in one row without a mask, and cannot be compared."""
        shapes = [tuple(ids.shape) for ids, _, _ in self._seen]
        positions = sum(rows * width for rows, width in shapes)
        found = {
            "tokens": int(sum(ids.numel() if mask is None else int(mask.sum()) for ids, mask, _ in self._seen)),
            "positions": positions,
            "head_positions": positions,
            "pairs": float(sum(rows * width**2 for rows, width in shapes)),
        }
        if all(mask is not None for _, mask, _ in self._seen):
            found["rows_digest"] = rows_digest(
                trained_row(ids, mask, labels)
                for batch in self._seen
                for ids, mask, labels in zip(*(part.tolist() for part in batch), strict=True)
            )
        return found


def labels_of(inputs: Any) -> Any:
    """What is trained, as labels: of answers to a prompt those, of a classifier the last token that is no padding."""
    if "labels" in inputs:
        return inputs["labels"]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if "completion_mask" in inputs:
        return ids.masked_fill(inputs["completion_mask"] == 0, -100)
    last = mask.cumsum(1).eq(mask.sum(1, keepdim=True)) & mask.bool()
    return ids.masked_fill(~last, -100)


def trained_row(ids: list[int], mask: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """Tokens of a row without its padding, and the indices of those that are trained; nothing predicts the first."""
    real = [(token, label) for token, kept, label in zip(ids, mask, labels, strict=True) if kept]
    return [token for token, _ in real], [i for i, (_, label) in enumerate(real) if label != -100 and i]
