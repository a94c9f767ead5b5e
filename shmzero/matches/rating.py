"""Ratings of a pool of agents out of rounds of three and more players.

Plackett-Luce: at each place the next best of those left is agent a with a chance proportional to
exp(strength a). Tied players share their places as in Efron 1977 (the Plackett-Luce likelihood is
that of a Cox model). Who plays whom is decided in pool.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shmzero.errors import RecordError
from shmzero.files import make_folder, write_whole
from shmzero.runs.folder import RunFolder

POINTS_PER_NAT = 400 / math.log(10)
"""Ratings are on Elo's scale: 400 points are odds of ten to one between two."""
PRIOR_SD = 10.0
"""The prior's standard deviation of every strength, in nats. It keeps an agent that always wins or loses finite."""
ANCHOR = "threshold"
"""Has rating 0 where it is in the pool; otherwise the pool's mean has."""
NEWTON_STEPS = 50


@dataclass(frozen=True)
class Rating:
    """An agent's rating with its 95 % interval, in Elo points against the anchor."""

    rating: float
    low: float
    high: float
    win_share: float
    seats: int
    """Seats that it held in all rounds or games."""


@dataclass(frozen=True)
class Ratings:
    """A pool's ratings, and how they came about."""

    agents: dict[str, Rating]
    """Ratings by the agents' names, the strongest first."""
    anchor: str
    deals: int
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def save(self, folder: Path) -> Path:
        """Write ratings.json into the folder, whole or not at all. Raises RecordError."""
        path = RunFolder(folder).ratings
        try:
            make_folder(folder)
        except OSError as error:
            raise RecordError(f"{path} cannot be written: {error.strerror}") from None
        write_whole(path, json.dumps(self.as_dict(), indent=1) + "\n")
        return path


def draw_tables(num_agents: int, deals: int, seats: int, seed: int) -> NDArray[np.uint8]:
    """Agents by seat [deals, seats]: shuffled pools end to end, so that all play about equally often."""
    rng = np.random.default_rng(seed)
    pools = -(-deals * seats // num_agents)
    drawn = rng.permuted(np.tile(np.arange(num_agents, dtype=np.uint8), (pools, 1)), axis=1)
    return drawn.reshape(-1)[: deals * seats].reshape(deals, seats)


def risk_sets(
    agents: NDArray[np.integer[Any]], points: NDArray[np.floating[Any]], num_agents: int
) -> NDArray[np.float64]:
    """[N, P, K]: for each player the weights by agent of those whom its place was won from.

    agents, points [N, P]; a player of agent -1 is not there. All who finished no better count 1, less
    k/m for those tied with it, where it is the k-th (from 0) of m.
    """
    there = agents >= 0
    both = there[:, :, None] & there[:, None, :]
    behind = (points[:, None, :] <= points[:, :, None]) & both
    tied = (points[:, None, :] == points[:, :, None]) & both
    earlier = (tied & np.tri(agents.shape[1], k=-1, dtype=np.bool_)).sum(2)
    share = earlier / np.maximum(tied.sum(2), 1)
    weights = behind - share[:, :, None] * tied
    one_hot = (agents[:, :, None] == np.arange(num_agents)).astype(np.float64)
    sets: NDArray[np.float64] = weights @ one_hot
    return sets


def fit(
    won: NDArray[np.float64], risk: NDArray[np.float64], weights: NDArray[np.float64], start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Strengths [K] in nats of the highest posterior, by Newton's method.

    won [D, K] places held by agent and deal, risk [D, M, K] risk sets of a deal (rows of zeros are none),
    weights [D] how often each deal counts.
    """
    strength = start.copy()
    wins = weights @ won
    present = (risk.sum(2) > 0) * weights[:, None]

    def posterior(at: NDArray[np.float64]) -> float:
        total = risk @ np.exp(at)
        log_total = np.log(np.where(total > 0, total, 1.0))
        return float(wins @ at - (present * log_total).sum() - at @ at / (2 * PRIOR_SD**2))

    value = posterior(strength)
    for _ in range(NEWTON_STEPS):
        share = risk * np.exp(strength)
        share /= np.maximum(share.sum(2, keepdims=True), 1e-300)
        weighted = share * present[:, :, None]
        expected = weighted.sum((0, 1))
        gradient = wins - expected - strength / PRIOR_SD**2
        flat, flat_weighted = share.reshape(-1, len(start)), weighted.reshape(-1, len(start))
        curvature = np.diag(expected + 1 / PRIOR_SD**2) - flat_weighted.T @ flat
        step = np.linalg.solve(curvature, gradient)
        length = 1.0
        while length > 1e-6 and posterior(strength + length * step) < value:  # concave: shorten until it rises
            length /= 2
        strength = strength + length * step
        value = posterior(strength)
        if np.abs(length * step).max() < 1e-6:
            break
    return strength


def ratings(
    names: Sequence[str],
    agents: NDArray[np.integer[Any]],
    points: NDArray[np.floating[Any]],
    deal: NDArray[np.integer[Any]],
    *,
    settings: dict[str, Any],
    seed: int = 0,
    resamples: int = 200,
) -> Ratings:
    """Ratings of `names` [K] out of N rounds or games.

    agents [N, P] (-1: no player), points [N, P], deal [N] 0..D-1, each deal at least once. Intervals are
    percentiles of a bootstrap over deals. `settings` are kept with the result.
    """
    num_agents = len(names)
    num_deals = int(deal.max()) + 1
    sets = risk_sets(agents, points, num_agents)
    per_deal = np.bincount(deal, minlength=num_deals)
    place = np.arange(len(deal)) - np.repeat(np.cumsum(per_deal) - per_deal, per_deal)
    risk = np.zeros((num_deals, int(per_deal.max()), *sets.shape[1:]))
    risk[deal, place] = sets  # deal is sorted
    risk = risk.reshape(num_deals, -1, num_agents)
    won = np.zeros((num_deals, num_agents))
    there = agents >= 0
    np.add.at(won, (np.broadcast_to(deal[:, None], agents.shape)[there], agents[there]), 1.0)

    anchor = list(names).index(ANCHOR) if ANCHOR in names else None

    def in_points(strength: NDArray[np.float64]) -> NDArray[np.float64]:
        zero = float(strength.mean() if anchor is None else strength[anchor])
        scaled: NDArray[np.float64] = POINTS_PER_NAT * (strength - zero)
        return scaled

    best = fit(won, risk, np.ones(num_deals), np.zeros(num_agents))
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            in_points(fit(won, risk, rng.multinomial(num_deals, np.full(num_deals, 1 / num_deals)).astype(float), best))
            for _ in range(resamples)
        ]
    )
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    highest = np.where(there, points, -np.inf)
    winner = highest == highest.max(1, keepdims=True)
    share = winner / winner.sum(1, keepdims=True)
    table = {}
    for k in np.argsort(-best, kind="stable"):
        held = agents == k
        table[names[k]] = Rating(
            rating=float(in_points(best)[k]),
            low=float(low[k]),
            high=float(high[k]),
            win_share=float(share[held].mean()),
            seats=int(held.sum()),
        )
    return Ratings(table, "pool mean" if anchor is None else ANCHOR, num_deals, settings)
