"""Settings of a training run's matches: defaults and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shmzero.settings import Settings, setting


@dataclass(frozen=True)
class Matches(Settings):
    """The matches of a training run, which say how strong it is."""

    title: ClassVar[str] = "matches"

    evaluate_s: float = setting(30.0, low=0, high=10**6, free=True, usual=True)
    """A match against each opponent so often, and one at the end; 0 plays only the last."""
    match_opponents: str = setting("threshold", free=True)
    """Built-in opponents of the matches, with commas; empty for none."""
    deals: int = setting(250, low=2, high=10**6, free=True)
    """Deals of a match during the run, each played from every seat; 1000 at the end."""
    rating: bool = setting(False, free=True)
    """With the matches, rate the newest checkpoint, older ones and the opponents together: ratings.json."""
    gate: bool = False
    """Self-play gets only checkpoints that beat the one it has: the match's whole interval above 0."""

    def opponents(self) -> list[str]:
        """The bots of the matches."""
        return [name for name in self.match_opponents.split(",") if name]
