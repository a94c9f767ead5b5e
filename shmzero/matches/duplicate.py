"""Matches between agents by duplicate deals.

Every deal is played once in each rotation of the seats, so that luck of the cards falls on all alike; the
deal is the unit of every interval. The rounds are played by csrc/play/match.h. Read next: agents.py (who plays),
pool.py (more than two agents).
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.machine import cores
from shmzero.matches.agents import Agent, AgentLike, make_agent
from shmzero.matches.config import MOST_DEALS
from shmzero.mcts.config import SearchConfig
from shmzero.mcts.play import play_settings
from shmzero.settings import check_choice, check_number, plain

Mode = Literal["one", "rest"]
ROWS_PER_STEP = 4096
"""Lanes are as many as make batches of about this size."""
BOT_LANES = 128
NORMAL_95 = 1.96


@dataclass(frozen=True)
class MatchResult:
    """How the hero did. Means are over deals, each the mean of its rotations."""

    hero: str
    villain: str
    mode: str
    deals: int
    rounds: int
    mean: float
    """Points per round: own minus the mean of the others; in mode "rest" the mean of the heroes minus the villain."""
    low: float
    high: float
    """95 % interval of `mean`: normal, over deals."""
    exact_bid: dict[int, float]
    """The share of the hero's rounds in which it won exactly what it bid, by hand size."""
    villain_exact_bid: dict[int, float]
    ceiling: dict[int, float]
    """The most that the mean exact-bid rate of whole tables can be, by hand size: (n-1)/n, for the hook makes one
    bid fail; over the tables that the hero's rate is over."""
    win_share: float
    """The hero's expected share of the win (most points of a round, or of a game with `games`; equals share it).
    In mode "rest" that of one hero. 1/n is what equals would have."""
    fair_share: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def match_plan(
    players: SupportsIndex | str, cards: SupportsIndex | str, trump: str, games: bool, seed: int
) -> _core.PlaySettings:
    """What a match deals, in the words of self-play. Raises ConfigError."""
    return play_settings(SearchConfig(), seed, str(plain(players)), str(plain(cards)), trump, "random", games)


def play_tables(
    agents: Sequence[Agent],
    tables: NDArray[np.uint8],
    settings: _core.PlaySettings,
    threads: int | None = None,
    show: Callable[[int], None] = lambda rounds: None,
) -> dict[str, NDArray[Any]]:
    """Play one deal for each of `tables` [D, 8] (agents by seat) in all rotations; returns the rounds.

    Columns [N], or [N, 8] by seat, as `_core.MatchRun.rounds` has them, sorted by deal, rotation and
    round. In rotation r seat s is held by tables[d, (s - r) mod players].
    """
    widest = max([agent.rows_per_step(settings.most_players) for agent in agents])
    lanes = BOT_LANES if widest == 0 else min(max(ROWS_PER_STEP // widest, 64), 2048)
    run = _core.MatchRun(settings, [agent.to_core() for agent in agents], tables.tolist(), lanes, threads or cores())
    while (blocks := run.step()) is not None:
        for index, features, masks in blocks:
            evaluate = agents[index].evaluate
            assert evaluate is not None
            run.answer(index, *evaluate(features, masks))
        show(run.num_rounds)
    rounds = run.rounds()
    order = np.lexsort((rounds["round_of_game"], rounds["rotation"], rounds["deal"]))
    return {name: column[order] for name, column in rounds.items()}


def play_match(
    hero: AgentLike,
    villain: AgentLike,
    *,
    deals: SupportsIndex,
    players: SupportsIndex | str = 4,
    cards: SupportsIndex | str = "5",
    seed: SupportsIndex = 0,
    mode: Mode = "one",
    trump: str = "random",
    games: bool = False,
    threads: int | None = None,
    show: Callable[[int], None] = lambda rounds: None,
) -> MatchResult:
    """One hero against villains in all other seats ("one"), or one villain among heroes ("rest").

    Each of `deals` deals (with `games` whole games) is played in every rotation: the number of units is
    deals x players. `players` and `cards` may be distributions such as "3-6" or "4:15,5:70". No deal is
    one of self-play with the same seed. A function of its arguments, for evaluators whose rows do not
    depend on the batch. Raises ConfigError; ValueError and RuntimeError as `search` does.
    """
    deals, seed = operator.index(deals), operator.index(seed)
    check_number("deals", deals, 2, MOST_DEALS)
    check_choice("mode", mode, ("one", "rest"))
    start = time.monotonic()
    agents = [make_agent(hero), make_agent(villain)]
    settings = match_plan(players, cards, trump, games, seed)
    odd, others = (0, 1) if mode == "one" else (1, 0)
    table = np.full((deals, _core.MAX_PLAYERS), others, np.uint8)
    table[:, 0] = odd
    rounds = play_tables(agents, table, settings, threads, show)
    return _result(agents, mode, games, deals, rounds, time.monotonic() - start)


def _result(
    agents: Sequence[Agent], mode: str, games: bool, deals: int, rounds: dict[str, NDArray[Any]], seconds: float
) -> MatchResult:
    """What the columns of `play_tables` say of the hero, who is the odd one out in mode "one"."""
    num_players = rounds["players"]
    seats = np.arange(_core.MAX_PLAYERS)
    seated = seats < num_players[:, None]
    at_odd = seats == rounds["rotation"][:, None]  # the odd one out sits at place 0 of the table
    first = np.flatnonzero(rounds["round_of_game"] == 0)
    players = num_players[first]
    odd_lead, odd_win = _by_unit(rounds["scores"], seated, at_odd, first)
    lead = odd_lead if mode == "one" else -odd_lead
    win = odd_win if mode == "one" else (1 - odd_win) / (players - 1)
    mean, low, high = _mean_over_deals(lead, rounds["deal"][first], deals)

    others = seated & ~at_odd
    hero, villain = (at_odd, others) if mode == "one" else (others, at_odd)
    exact = rounds["bids"] == rounds["tricks"]
    most = np.broadcast_to((1 - 1 / num_players)[:, None], exact.shape)
    return MatchResult(
        hero=agents[0].name,
        villain=agents[1].name,
        mode=mode,
        deals=deals,
        rounds=len(num_players),
        mean=mean,
        low=low,
        high=high,
        exact_bid=_mean_by_size(exact, hero, rounds["cards"]),
        villain_exact_bid=_mean_by_size(exact, villain, rounds["cards"]),
        ceiling=_mean_by_size(most, hero, rounds["cards"]),
        win_share=float(win.mean()),
        fair_share=float((1 / players).mean()),
        seconds=seconds,
    )


def _by_unit(
    scores: NDArray[Any], seated: NDArray[np.bool_], at_odd: NDArray[np.bool_], first: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(lead, win) [U] of the odd one out by unit, which is a round, or a game.

    lead: points a round more than the mean of the others. win: its share of the most points. scores, seated, at_odd
    [N, 8] by round and seat; first [U]: the first round of each unit.
    """
    rounds = np.diff(np.append(first, len(scores)))
    totals = np.add.reduceat(np.where(seated, scores, 0), first)
    there, odd = seated[first], at_odd[first]
    odd_points = totals[odd]
    lead = (odd_points - (totals.sum(1) - odd_points) / (there.sum(1) - 1)) / rounds
    highest = np.where(there, totals, np.iinfo(totals.dtype).min)
    winners = (highest == highest.max(1, keepdims=True)) & there
    return lead, winners[odd] / winners.sum(1)


def _mean_over_deals(
    lead: NDArray[np.float64], deal: NDArray[np.integer[Any]], deals: int
) -> tuple[float, float, float]:
    """(mean, low, high) over the deals, each the mean of its units: normal, 95 %."""
    by_deal = np.bincount(deal, lead, deals) / np.bincount(deal, minlength=deals)
    margin = NORMAL_95 * float(by_deal.std(ddof=1)) / math.sqrt(deals)
    mean = float(by_deal.mean())
    return mean, mean - margin, mean + margin


def _mean_by_size(of_seats: NDArray[Any], mask: NDArray[np.bool_], cards: NDArray[np.integer[Any]]) -> dict[int, float]:
    """The mean of `of_seats` [N, 8] over the seats of `mask` [N, 8], by the rounds' hand size `cards` [N]."""
    sizes = cards[:, None]
    return {int(size): float(of_seats[mask & (sizes == size)].mean()) for size in np.unique(cards)}
