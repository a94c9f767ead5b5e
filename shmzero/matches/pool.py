"""Ratings of more than two agents, out of tables that they play."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import SupportsIndex

import numpy as np

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.matches.agents import AgentLike, make_agent
from shmzero.matches.config import MOST_DEALS
from shmzero.matches.duplicate import match_plan, play_tables
from shmzero.matches.rating import Ratings, draw_tables, ratings
from shmzero.settings import check_number, plain


def rate(
    pool: Sequence[AgentLike],
    *,
    deals: SupportsIndex,
    players: SupportsIndex | str = 4,
    cards: SupportsIndex | str = "5",
    seed: SupportsIndex = 0,
    trump: str = "random",
    games: bool = False,
    threads: int | None = None,
    show: Callable[[int], None] = lambda rounds: None,
) -> Ratings:
    """Ratings of a pool of at least two agents that meet at mixed tables, each deal in all rotations.

    With `games` whole games are ranked, otherwise rounds. Raises ConfigError.
    """
    deals, seed = operator.index(deals), operator.index(seed)
    check_number("deals", deals, 2, MOST_DEALS)
    agents = [make_agent(spec) for spec in pool]
    names = [agent.name for agent in agents]
    if len(agents) < 2:
        raise ConfigError(f"the pool has {len(agents)} agents; allowed: 2 or more")
    if len(agents) > 255:
        raise ConfigError(f"the pool has {len(agents)} agents; allowed: at most 255")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"agent {twice} is in the pool twice; allowed: each once")
    settings = match_plan(players, cards, trump, games, seed)
    tables = np.zeros((deals, _core.MAX_PLAYERS), np.uint8)
    most = settings.most_players
    tables[:, :most] = draw_tables(len(agents), deals, most, seed)
    rounds = play_tables(agents, tables, settings, threads, show)
    first = np.flatnonzero(rounds["round_of_game"] == 0)
    seats = np.arange(_core.MAX_PLAYERS)
    num = rounds["players"][first][:, None]
    place = (seats - rounds["rotation"][first][:, None]) % num
    seated = np.where(seats < num, np.take_along_axis(tables[rounds["deal"][first]].astype(int), place, 1), -1)
    absent = sorted(set(range(len(agents))) - set(np.unique(seated)))
    if absent:
        raise ConfigError(f"deals is {deals}, and {names[absent[0]]} had a seat in none; allowed: more of them")
    points = np.add.reduceat(rounds["scores"], first).astype(float)
    played = {"players": str(plain(players)), "cards": str(plain(cards)), "trump": trump, "games": games, "seed": seed}
    return ratings(names, seated, points, rounds["deal"][first].astype(int), settings=played, seed=seed)
