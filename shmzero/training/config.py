"""Settings of a training run: defaults, presets and what is allowed. Read next: plan.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from shmzero import _core
from shmzero.engine.config import (
    USUAL_RANDOM_MOVES,
    Evaluator,
    Length,
    Processes,
    Seats,
    SelfPlayConfig,
    SelfPlaySearch,
)
from shmzero.errors import ConfigError
from shmzero.game.deals import Deals
from shmzero.inference.config import Inference
from shmzero.learner.config import LearnerConfig, LearnerProcess, Learning
from shmzero.matches.config import Matches
from shmzero.mcts.config import SearchRules
from shmzero.settings import Settings, declarations, setting

MANY_GAMES = 10**9
"""More than a run will play: it ends by its time or its rounds."""


@dataclass(frozen=True)
class TrainLength(Settings):
    """How long a run trains."""

    minutes: float | None = setting(2.0, low=0.05, high=1e6, free=True, usual=True)
    """Wall time to train, from the command's start; the time between sessions is not counted."""
    rounds: int | None = setting(None, low=1, high=10**12, free=True, usual=True)
    """Rounds to play; with minutes as well, whichever comes first."""
    closing_s: float = setting(1.5, low=0, high=60, free=True)
    """Taken off the minutes for saving at the end."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        if self.minutes is None and self.rounds is None:
            raise ConfigError("minutes and rounds are both unset; allowed: at least one of them")
        if self.minutes is not None and self.closing_s >= 60 * self.minutes:
            raise ConfigError(
                f"closing_s is {self.closing_s:g} of {60 * self.minutes:g} s in all; allowed: less than the minutes"
            )


@dataclass(frozen=True)
class TrainDeals(Deals):
    """What a training run plays."""

    whole_games: bool = setting(False, usual=True)
    """Play whole games, whose rounds know the score; `cards` is then the largest hand. Only whole ones are kept."""


@dataclass(frozen=True)
class TrainSearch(SearchRules):
    """The search of a training run's self-play."""

    search: str = setting("0", usual=True)
    """Worlds x simulations of self-play: 0 (the policy itself), 3x30, or stages of the run as 1x15,2x25,3x35,
    with their lengths as 1x15:1,2x25:3."""

    def parts(self) -> list[tuple[int, int, float]]:
        """(worlds, simulations, length relative to the others) of each stage of self-play. Raises ConfigError."""
        found = []
        for part in self.search.split(","):
            effort, colon, length = part.partition(":")
            worlds, times, simulations = effort.partition("x")
            try:
                weight = float(length) if colon else 1.0
            except ValueError:
                weight = math.nan
            if effort == "0":
                worlds, times, simulations = "1", "x", "0"
            fits = times and worlds.isdecimal() and simulations.isdecimal() and int(worlds)
            if not fits or (effort != "0" and not int(simulations)) or not 0 < weight < math.inf:
                raise ConfigError(
                    f"search is {self.search!r}; allowed: 0, 3x30, stages as 1x15,2x25,3x35, or with their lengths "
                    "as 1x15:1,2x25:3"
                )
            found.append((int(worlds), int(simulations), weight))
        return found

    def stages(self) -> list[tuple[int, int]]:
        """(worlds, simulations) of each stage of self-play."""
        return [(worlds, simulations) for worlds, simulations, _ in self.parts()]

    def searches(self) -> bool:
        """Whether self-play searches in any stage."""
        return any(simulations > 0 for _, simulations in self.stages())

    def stage(self, done: float) -> int:
        """The stage in which the share `done` of the run falls."""
        ends = list(itertools.accumulate(length for _, _, length in self.parts()))
        return sum(done * ends[-1] >= end for end in ends[:-1])

    def check(self) -> None:
        """Raises ConfigError for rules of a search where there is none."""
        if self.searches():
            return
        for name, value, usual in (
            ("root", self.root, "puct"),
            ("opponent_model", self.opponents, "policy"),
            ("solved_cards", self.solved_cards, 0),
        ):
            if value != usual:
                raise ConfigError(f"{name} is {value!r} without a search; allowed: with one, as --search 3x30")


@dataclass(frozen=True)
class TrainConfig(Settings):
    """A training run: self-play, learner and matches at once, for a given time or number of rounds.

    `TrainConfig.of(minutes=5, players="3-6")` makes one out of flat names.
    """

    old_names: ClassVar[Mapping[str, str]] = {
        "games": "whole_games",
        "seats": "opponent_model",
        "others": "opponent_pool",
        "opponents": "match_opponents",
        "rate": "rating",
    }

    length: TrainLength = field(default=TrainLength())
    deals: TrainDeals = field(default=TrainDeals())
    search: TrainSearch = field(default=TrainSearch())
    seats: Seats = field(default=Seats(random_moves=USUAL_RANDOM_MOVES))
    learning: Learning = field(default=Learning(net="quick"))
    learner: LearnerProcess = field(default=LearnerProcess())
    matches: Matches = field(default=Matches())
    inference: Inference = field(default=Inference(compile=False, inference_threads=1))
    processes: Processes = field(default=Processes())
    tensorboard: bool = setting(False, free=True)
    """Write the metrics for TensorBoard as well, into RUN/tensorboard."""
    seed: int = setting(0, usual=True)
    """Seed of deals, fresh weights and batches."""

    def check(self) -> None:
        """Raises ConfigError for settings that do not go together."""
        utility, targets = self.learning.utility, self.learning.targets
        if utility == "win":
            if not self.deals.whole_games or self.search.searches():
                raise ConfigError(
                    "utility is 'win'; allowed: with --whole-games and without a search (which ends in points)"
                )
            if self.matches.gate:
                raise ConfigError("gate is set with utility 'win', and compares points; allowed: with utility 'points'")
            if self.search.rivalry:
                raise ConfigError(
                    f"rivalry is {self.search.rivalry} with utility 'win', which has no points; allowed: 0"
                )
        if targets != "critic" and 0 in (simulations for _, simulations in self.search.stages()):
            raise ConfigError(
                f"targets is {targets!r} with a search of 0 simulations; allowed: for example --search 3x30"
            )
        if self.seats.random_moves is None:
            raise ConfigError("random_moves is unset; allowed: a share")
        for stage in range(len(self.search.stages())):
            self.self_play(stage)

    def self_play(self, stage: int) -> SelfPlayConfig:
        """The settings of self-play in a stage, as far as they do not follow from the machine."""
        worlds, simulations = self.search.stages()[stage]
        search = SelfPlaySearch(
            **self.search.part(SearchRules),
            target="visits" if self.learning.targets == "visits" else "improved",
            determinizations=worlds,
            simulations=simulations,
        )
        return SelfPlayConfig(
            length=Length(games=MANY_GAMES if self.deals.whole_games else None),
            deals=Deals(**self.deals.part(Deals)),
            search=search,
            seats=self.seats,
            net=Evaluator(net=self.learning.net),
            inference=self.inference,
            processes=self.processes,
            seed=self.seed,
        )

    def learner_config(self) -> LearnerConfig:
        """What the learner has to know."""
        assert self.seats.random_moves is not None  # or it would have been refused
        return LearnerConfig(
            **self.learning.part(Learning),
            **self.learner.part(LearnerProcess),
            searches=self.search.searches(),
            random_moves=self.seats.random_moves,
            most_players=self.self_play(0).play_settings().most_players,
            seed=self.seed,
        )

    def check_devices(self) -> None:
        """Raises ConfigError where this machine does not have the devices of self-play and learner."""
        if self.processes.cluster is None:
            self.inference.check_devices()
        self.learner.check_devices()

    def identity(self) -> dict[str, Any]:
        """The settings that make a run what it is; a run folder keeps to them."""
        kept = {name: value for name, value in self.flat().items() if not declarations(TrainConfig)[name].free}
        for name in ("redeals", "neurd_share"):  # which runs from before there were any go on without
            if kept[name] == 0 or self.learning.targets != "critic":
                del kept[name]
        return kept | {"record_version": _core.RECORD_VERSION, "feature_version": _core.FEATURE_VERSION}
