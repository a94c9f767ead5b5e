"""What an evaluator may answer: everything else is refused with its row, and no record of it is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shmzero import SearchConfig, _core, play_rounds, search
from shmzero.matches.duplicate import play_match
from shmzero.mcts.evaluators import UniformEvaluator
from tests.support.cases import round_of

CONFIG = SearchConfig(determinizations=2, simulations=8)
POLICY = SearchConfig(simulations=0)


class Tampered:
    """The uniform evaluator; after so many rows `tamper(policies, values, masks, row)` spoils one."""

    def __init__(self, tamper: Callable[..., None], after: int = 0) -> None:
        self.tamper = tamper
        self.left = after
        self.row: int | None = None
        """Of its batch, once it was spoiled."""

    def evaluate_many(self, states: Any, masks: Any) -> Any:
        policies, values = UniformEvaluator().evaluate_many(states, masks)
        for row in np.flatnonzero(masks.sum(axis=1) > 1):
            if self.left == 0 and self.row is None:
                self.row = int(row)
                self.tamper(policies, values, masks, row)
            self.left -= 1
        return policies, values


def one(number: float) -> Callable[..., None]:
    """A policy with this number for its highest legal action."""
    return lambda p, v, m, row: p[row].__setitem__(int(np.flatnonzero(m[row])[-1]), number)


def all_of(number: float) -> Callable[..., None]:
    """A policy with this number for every legal action."""
    return lambda p, v, m, row: p[row].__setitem__(m[row], number)


def value(number: float) -> Callable[..., None]:
    return lambda p, v, m, row: v[row].__setitem__(0, number)


BAD = {
    "a negative policy": (one(-0.25), r"the policy -0.25 for action \d+"),
    "a policy that is not a number": (one(math.nan), r"the policy -?nan for action \d+"),
    "an infinite policy": (one(math.inf), r"the policy inf for action \d+"),
    "zeros": (all_of(0.0), r"a policy that sums to 0 over its \d+ legal actions"),
    "denormal numbers": (all_of(1e-40), r"a policy that sums to \d\S*e-40 over its \d+ legal actions"),
    "a sum beyond all numbers": (all_of(3e38), r"a policy that sums to inf over its \d+ legal actions"),
    "a value that is not a number": (value(math.nan), "the value -?nan; allowed: finite numbers"),
    "an infinite value": (value(-math.inf), "the value -inf"),
    "a value beyond all sense": (value(1e30), r"the value 1e\+30; allowed: finite numbers from -1e\+06 to 1e\+06"),
}


def play(evaluator: Any, config: SearchConfig) -> Any:
    return play_rounds(evaluator, 6, config, players="3-5", cards="2-5")


def match(evaluator: Any, config: SearchConfig) -> Any:
    return play_match((evaluator, config), "threshold", deals=2)


def one_search(evaluator: Any, config: SearchConfig) -> Any:
    return search(round_of("SA SK S2 | HA HK H2 | CA CK C2", "S", 2), evaluator, config)


@pytest.mark.parametrize("way", [one_search, play, match])
@pytest.mark.parametrize("name", BAD)
def test_answer_that_cannot_be_used_is_refused_with_row_action_and_value(way: Any, name: str) -> None:
    tamper, said = BAD[name]
    for config, after in ((CONFIG, 0), (CONFIG, 5), (POLICY, 0)):
        if way is one_search and config is POLICY:
            continue  # for a policy alone it is the same as the first row of a search
        evaluator = Tampered(tamper, after)
        with pytest.raises(RuntimeError, match=said) as error:
            way(evaluator, config)
        assert f"row {evaluator.row} of its batch" in str(error.value)


def test_answer_names_the_action_in_the_order_of_the_row() -> None:
    """The highest legal action of the row's own suits, in a position whose suits are moved."""
    r = round_of("S2 HA HK | DA DK CA | CK S3 S4", "H", 2, "1 1 0")
    places = np.flatnonzero(r.mask())
    assert list(places) != r.legal_actions()
    with pytest.raises(RuntimeError, match=f"for action {places[-1]}, which is legal"):
        search(r, Tampered(one(-1.0)), CONFIG)


def test_answer_may_have_any_sum_and_anything_for_what_is_not_legal() -> None:
    class Odd:
        def evaluate_many(self, states: Any, masks: Any) -> Any:
            policies, values = UniformEvaluator().evaluate_many(states, masks)
            return np.where(masks, 1e30 * policies, np.nan).astype(np.float32), values

    r = round_of("SA SK S2 | HA HK H2 | CA CK C2", "S", 2)
    odd, usual = (search(r, evaluator, CONFIG) for evaluator in (Odd(), UniformEvaluator()))
    assert odd.prior.sum() == pytest.approx(1) and np.array_equal(odd.visits, usual.visits)
    for record in play_rounds(Odd(), 3, CONFIG):
        _core.decode_record(record)
