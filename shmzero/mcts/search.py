"""One decision by determinized search over an evaluator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.mcts.config import SearchConfig


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


def drive(run: _core.SearchRun | _core.PlayRun, evaluator: Evaluator) -> Iterable[None]:
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
    for _ in drive(run, evaluator):
        pass
    return SearchResult(**run.result())
