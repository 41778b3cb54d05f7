"""Groups of earlier batches that are trained again, and prompts that are asked again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from finetooth_hooks.rollouts import Rollout

from finetooth_rollouts.advantages import groups_of
from finetooth_rollouts.rollouts_file import as_json, from_json


def differ(rollouts: Sequence[Rollout]) -> bool:
    """Whether the rewards of a group are not all equal."""
    return any(rollout.reward != rollouts[0].reward for rollout in rollouts)


class Replay:
    """Groups whose rewards differed, to take the place of groups whose rewards are all equal; each once at most.

    Args:
        most: groups that are kept, the latest ones.
        staleness: optimizer steps at most between the weights that drew a group and those that train it again.
    """

    def __init__(self, most: int, staleness: int) -> None:
        self._staleness = staleness
        self._groups: deque[list[Rollout]] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._groups)

    def filled(
        self, rollouts: Sequence[Rollout], version: int, random: np.random.Generator
    ) -> tuple[list[Rollout], int]:
        """A batch with kept groups in place of those that teach nothing, and how many; its own are kept from now on.

        Args:
            rollouts: scored, those of a group next to each other.
            version: optimizer steps done.
        """
        too_old = version - self._staleness
        young = [group for group in self._groups if min(v for r in group for v in r.of_policy(r.versions)) >= too_old]
        self._groups = deque(young, self._groups.maxlen)
        batch, replaced, own = list[Rollout](), 0, list[list[Rollout]]()
        for place in groups_of(rollouts):
            group = list(rollouts[place])
            if differ(group):
                own.append(group)
            elif self._groups:
                chosen = int(random.integers(len(self._groups)))
                group, replaced = self._groups[chosen], replaced + 1
                del self._groups[chosen]
            batch += group
        self._groups.extend(own)
        return batch, replaced

    def state(self) -> list[list[dict[str, Any]]]:
        """JSON-able."""
        return [[as_json(rollout) for rollout in group] for group in self._groups]

    def take(self, state: Iterable[Iterable[Mapping[str, Any]]]) -> None:
        """What `state` gave."""
        self._groups = deque(([from_json(record) for record in group] for group in state), self._groups.maxlen)


class Unsolved:
    """Prompts to which no answer had a reward above 0, in the order in which that was seen; each of them once."""

    def __init__(self) -> None:
        self._waiting: list[str] = []

    def see(self, rollouts: Sequence[Rollout]) -> None:
        """Scored rollouts, those of a group next to each other."""
        for place in groups_of(rollouts):
            group = rollouts[place]
            if group[0].id not in self._waiting and all((rollout.reward or 0.0) <= 0.0 for rollout in group):
                self._waiting.append(group[0].id)

    def again(self, most: int, asked: Sequence[str]) -> list[str]:
        """Ids of prompts that are asked again now, at most so many; they do not wait any more.

        Args:
            asked: ids of prompts that are asked anyway.
        """
        ids = [id_ for id_ in self._waiting if id_ not in asked][:most]
        self._waiting = [id_ for id_ in self._waiting if id_ not in ids]
        return ids

    def state(self) -> list[str]:
        """JSON-able."""
        return list(self._waiting)

    def take(self, state: Sequence[str]) -> None:
        """What `state` gave."""
        self._waiting = list(state)
