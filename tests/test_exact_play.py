"""tools/exact_play.py: one-card rounds against all deals, one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import shmzero
from shmzero.evaluators import UniformEvaluator
from tools.exact_play import OneCard, bids_of, one_card, prefers_two, strong_trumps


def by_strength(rounds: list[shmzero.Round]) -> np.ndarray:
    """Bids that depend on the card, the trump and what was bid: nothing cancels out."""
    chances = []
    for r in rounds:
        (card,) = r.hands[r.seat]
        bids = [bid for bid in r.bids if bid is not None]
        chances.append(0.05 + 0.5 * (card % 13) / 12 + 0.3 * (card // 13 == r.trump) + 0.1 * (sum(bids) == 0))
    return np.array(chances)


@pytest.mark.parametrize("trump", [1, None])
def test_one_card_equals_a_sum_over_all_deals(trump: int | None) -> None:
    """Three players: the expectations of the last but one seat, from every deal played out by the core."""
    players, turn, card, bids = 3, 1, 7 if trump is None else 14, (1,)
    found = one_card(by_strength, players, trump)
    points, weight = np.zeros(2), np.zeros(2)
    cards = [c for c in range(52) if c != card]
    for first, last in itertools.product(cards[::5], cards):
        if first == last:
            continue
        for mine in (0, 1):
            r = shmzero.Round.from_hands([[first], [card], [last]], trump=trump, dealer=2)
            chance = by_strength([r])[0]
            r.apply(bids[0])
            r.apply(mine)
            legal = r.legal_actions()
            bid_one = by_strength([r])[0] if len(legal) == 2 else float(legal[0])
            for bid in legal:
                end = r.copy()
                end.apply(bid)
                while end.phase != "done":
                    end.apply(end.legal_actions()[0])
                likely = chance * (bid_one if bid else 1 - bid_one)
                points[mine] += likely * end.scores()[turn]
                weight[mine] += likely
    # The first seat's card goes by fives here: the same deals, weighted with a bid that only they can make.
    only = one_card(lambda rounds: np.where([_fifth(r, cards) for r in rounds], by_strength(rounds), 0.0), players, trump)
    np.testing.assert_allclose(only.value[turn][:, 1, card], points / weight, rtol=1e-9)
    assert not np.allclose(found.value[turn][:, 1, card], points / weight)


def _fifth(r: shmzero.Round, cards: list[int]) -> bool:
    """Whether the first bidder's card is one of those that the sum above goes over; all others bid as they are."""
    return r.seat != 0 or r.hands[0][0] in cards[::5]


@pytest.mark.parametrize("players", [3, 4, 6])
def test_one_card_losses_and_reach_make_sense(players: int) -> None:
    found = one_card(by_strength, players, 2)
    for turn, (loss, reach) in enumerate(zip(found.losses(), found.reach, strict=True)):
        assert loss.shape == reach.shape == (2**turn, 52) and loss.min() > -1e-9 and abs(reach.sum() - 1) < 1e-9
        np.testing.assert_allclose(reach.sum(axis=0), 1 / 52)  # any card, whatever is bid
    assert 0 < found.mean_loss() < found.worst_hand() < 11


def test_one_card_a_best_response_loses_nothing_against_itself() -> None:
    """Improving every seat's bids in turn comes to rest, where nothing is given away."""
    bids: dict[tuple[int, tuple[int, ...], int], float] = {}

    def table(rounds: list[shmzero.Round]) -> np.ndarray:
        return np.array([bids.get(_key(r), 0.5) for r in rounds])

    found: OneCard
    for _ in range(30):
        found = one_card(table, 3, 0)
        for turn, value in enumerate(found.value):
            for prefix, card in itertools.product(range(2**turn), range(52)):
                so_far = tuple(prefix >> (turn - 1 - i) & 1 for i in range(turn))
                old = bids.get((turn, so_far, card), 0.5)
                best = float(value[1, prefix, card] > value[0, prefix, card])
                bids[turn, so_far, card] = old + 0.5 * (best - old)
    found = one_card(table, 3, 0)
    assert found.mean_loss() < 1e-3
    assert found.first_bids_one_from(0) == 0


def _key(r: shmzero.Round) -> tuple[int, tuple[int, ...], int]:
    return r.seat, tuple(bid for bid in r.bids if bid is not None), r.hands[r.seat][0]


def test_strong_trumps_are_what_they_say() -> None:
    rounds = list(strong_trumps(50))
    assert len(rounds) > 40 and {r.seat for r in rounds} == {0, 1, 2, 3}
    for r in rounds:
        assert r.trump is not None and {r.trump * 13 + rank for rank in (10, 11, 12)} <= set(r.hands[r.seat])
    assert prefers_two(UniformEvaluator(), rounds) == 0.0
    assert np.allclose(bids_of(UniformEvaluator())([shmzero.Round.deal(players=3, cards=1, dealer=2)]), 0.5)
