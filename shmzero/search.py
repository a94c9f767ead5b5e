"""Search and self-play in this process: the engine without other processes.

An evaluator is anything with `evaluate_many(states [B, 256] f32, masks [B, 52] bool)` that returns
(policies [B, 52], values [B, 1]): the expected utility of the seat whose row it is. Of a policy only
the legal actions are read: numbers from 0 on, of any sum above 0. A row with an empty mask asks for
its value alone. The search itself is csrc/search.h.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.config import SearchConfig, play_settings


class Evaluator(Protocol):
    """The evaluator that search asks."""

    def evaluate_many(self, states: NDArray[np.float32], masks: NDArray[np.bool_]) -> tuple[Any, Any]:
        """(policies [B, 52], values [B, 1]) of rows in canonical suit order."""


@dataclass(frozen=True)
class SearchResult:
    """A decision. Arrays [52] are indexed by action: a bid, or a card's index."""

    visits: NDArray[np.uint32]
    """Simulations through each root action, over all worlds."""
    q: NDArray[np.float32]
    """Mean utility of the root seat after each action."""
    policy: NDArray[np.float32]
    """Policy target, sum 1."""
    prior: NDArray[np.float32]
    """The network's policy at the root."""
    value: float
    """Expected utility of the root seat."""
    action: int
    """The action to play."""
    evaluations: int
    """Distinct rows asked of the evaluator; histories that end in equal features, a few in a thousand, count each."""
    simulations: int
    terminals: int
    """Simulations that ended in a finished round."""


def _drive(run: _core.SearchRun | _core.PlayRun, evaluator: Evaluator) -> Iterable[None]:
    while (rows := run.step()) is not None:
        policies, values = evaluator.evaluate_many(*rows)
        run.answer(np.asarray(policies, np.float32), np.asarray(values, np.float32))
        yield


def search(
    r: _core.Round, evaluator: Evaluator, config: SearchConfig | None = None, seed: SupportsIndex = 0
) -> SearchResult:
    """Search the decision of the seat to act.

    The result is a function of that seat's information set, the evaluator, the settings and the seed.
    A forced action is returned without asking anything. Raises ValueError for a finished round or
    answers of another shape; RuntimeError for an answer that cannot be used, with its row, action and
    value: a policy with a number below 0 or not finite, or with a sum that is 0 or too small to divide
    by; a value that is not finite, or beyond a million.
    """
    run = _core.SearchRun(r, (config or SearchConfig()).to_core(), seed)
    for _ in _drive(run, evaluator):
        pass
    return SearchResult(**run.result())


def play_rounds(
    evaluator: Evaluator,
    n: SupportsIndex,
    config: SearchConfig | None = None,
    *,
    seed: SupportsIndex = 0,
    lanes: SupportsIndex = 64,
    players: str = "4",
    cards: str = "5",
    trump: str = "random",
    dealer: str = "random",
    games: bool = False,
    rules: _core.Rules | None = None,
) -> list[bytes]:
    """Play rounds 0..n-1 (with `games`: games) against itself and return their records, by id.

    The same engine and the same rounds as `python -m shmzero.selfplay` with these settings.
    `_core.decode_record` and `_core.replay` read records. Raises ConfigError for impossible settings and,
    as `search` does, ValueError and RuntimeError for what the evaluator answers.
    """
    settings = play_settings(
        config or SearchConfig(), index(seed), players, cards, trump, dealer, games, rules
    )
    run = _core.PlayRun(settings, list(range(index(n))), lanes)
    for _ in _drive(run, evaluator):
        pass
    return [record for _, records in sorted(run.finished()) for record in records]
