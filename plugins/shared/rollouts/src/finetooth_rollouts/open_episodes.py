"""Episodes that are played a part at a time, each part by the weights of its moment.

Where a run is killed between two parts, an episode is played again up to where it was: the same task and seed, and the
turns that were written. So its environment has to say the same again (capability `seeded`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_hooks.rollouts import Rollout

from finetooth_rollouts.live_episode import EndedEpisode, LiveEpisode
from finetooth_rollouts.rollouts_file import as_json


class OpenEpisodes:
    """Episodes, those of a group next to each other.

    Args:
        name: of the environment among the rewards.
        parts: that were played.
    """

    def __init__(self, name: str, played: Sequence[LiveEpisode | EndedEpisode], parts: int = 0) -> None:
        self._name, self._played, self.parts = name, list(played), parts

    def __len__(self) -> int:
        return len(self._played)

    @property
    def going(self) -> list[LiveEpisode]:
        """The unfinished episodes."""
        return [episode for episode in self._played if isinstance(episode, LiveEpisode) and not episode.ended]

    @property
    def held(self) -> list[LiveEpisode]:
        """Those that hold something of the environment's."""
        return [episode for episode in self._played if isinstance(episode, LiveEpisode)]

    @property
    def turns(self) -> int:
        """How many turns the policy has had."""
        return sum(len(e.turns) if isinstance(e, LiveEpisode) else e.count for e in self._played)

    @property
    def oldest(self) -> int | None:
        """The oldest weights that wrote a part of an unfinished episode."""
        return min((version for episode in self.going for version in episode.versions), default=None)

    def episodes(self) -> tuple[tuple[Rollout, ...], ...]:
        """Their rollouts."""
        return tuple(tuple(episode.rollouts(self._name)) for episode in self._played)

    @property
    def failures(self) -> list[str]:
        """Reasons of those that an error or a time limit ended."""
        return [episode[-1].failure for episode in self.episodes() if episode[-1].failure]

    def parted(self) -> tuple[OpenEpisodes, OpenEpisodes]:
        """The groups that have ended, and those with an unfinished episode."""
        open_ = {episode.asked.group for episode in self.going}
        sides: tuple[list[LiveEpisode | EndedEpisode], ...] = [], []
        for episode in self._played:
            sides[(episode.asked.group if isinstance(episode, LiveEpisode) else episode.group) in open_].append(episode)
        done, going = (OpenEpisodes(self._name, side, self.parts) for side in sides)
        return done, going

    def state(self) -> Mapping[str, Any]:
        """JSON."""
        return {"parts": self.parts, "episodes": [self._state(episode) for episode in self._played]}

    def _state(self, episode: LiveEpisode | EndedEpisode) -> Mapping[str, Any]:
        if isinstance(episode, LiveEpisode) and not episode.ended:
            return episode.state()
        group = episode.asked.group if isinstance(episode, LiveEpisode) else episode.group
        count = len(episode.turns) if isinstance(episode, LiveEpisode) else episode.count
        return {"group": group, "count": count, "found": [as_json(rollout) for rollout in episode.rollouts(self._name)]}
