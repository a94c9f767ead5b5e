"""tools/exact_play.py: one-card rounds against all deals, one by one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmzero
from shmzero.mcts.evaluators import UniformEvaluator
from shmzero.nets.blob_net import BlobNet
from shmzero.nets.checkpoint import save_checkpoint
from shmzero.nets.config import NetConfig
from tools.exact_play import RANKS, RIGHT_FROM, OneCard, bids_of, main, one_card, prefers_two, strong_trumps


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
    only = one_card(
        lambda rounds: np.where([_fifth(r, cards) for r in rounds], by_strength(rounds), 0.0), players, trump
    )
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
    assert found.best_bids_one_from(0) == found.bids_one_from(0) == 0


@pytest.mark.parametrize(("players", "card"), [(3, "H2"), (4, "H4"), (5, "H6"), (6, "H8")])
def test_best_first_bid_is_one_from_the_deuce_four_six_and_eight_of_trumps(players: int, card: str) -> None:
    """Whatever the others bid: they bid later, and nobody has a choice of cards."""
    assert RIGHT_FROM[players] == RANKS.index(card[1])
    for bids in (by_strength, lambda rounds: np.full(len(rounds), 0.5)):
        assert one_card(bids, players, 1).best_bids_one_from(1) == RIGHT_FROM[players]


def test_first_bidders_own_threshold_is_the_bids_not_the_best_responses() -> None:
    def timid(rounds: list[shmzero.Round]) -> np.ndarray:
        return np.array([0.9 if r.hands[r.seat][0] in (12, 11, 10) or r.hands[r.seat][0] == 5 else 0.1 for r in rounds])

    found = one_card(timid, 4, 0)
    assert found.bids_one_from(0) == 10 and found.best_bids_one_from(0) == 2  # the seven alone is not "from"
    assert one_card(timid, 4, 1).bids_one_from(1) is None


def test_worst_decision_is_the_largest_loss_of_a_reachable_one() -> None:
    """Whoever never bids 0 cannot be asked after a 0."""
    found = one_card(lambda rounds: np.where([r.seat == 0 for r in rounds], 1.0, by_strength(rounds)), 4, 2)
    worst = found.worst()
    assert worst.turn == 0 or worst.bids[0] == 1
    prefix = int("".join(map(str, worst.bids)) or "0", 2)
    assert found.losses()[worst.turn][prefix, worst.card] == worst.loss
    assert worst.reach == found.reach[worst.turn][prefix, worst.card] > 0
    for loss, reach in zip(found.losses(), found.reach, strict=True):
        assert loss[reach > 0].max() <= worst.loss
    assert worst.loss > found.worst_hand() - 1e-9


def _key(r: shmzero.Round) -> tuple[int, tuple[int, ...], int]:
    return r.seat, tuple(bid for bid in r.bids if bid is not None), r.hands[r.seat][0]


def test_command_keeps_what_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    save_checkpoint(BlobNet(NetConfig(width=16, hidden=16, blocks=1)), tmp_path / "net.safetensors")
    monkeypatch.setattr(
        "sys.argv", ["exact_play.py", str(tmp_path / "net.safetensors"), "--save", str(tmp_path / "x.json")]
    )
    assert main() == 0
    kept = {r["name"]: r for r in json.loads((tmp_path / "x.json").read_text())["results"]}
    printed = capsys.readouterr().out
    assert all(name in printed for name in kept)
    for players, card in ((3, "2"), (4, "4"), (5, "6"), (6, "8")):
        name = f"one card, {players} players, trumps: first, the best response to it bids 1 from"
        assert kept[name]["value"] == kept[name]["goal"] == card
        assert f"ace, king, queen of trumps of five cards, {players} players: bid 2 above bid 0" in kept


def test_command_refuses_what_it_could_not_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for arguments, line in (
        ([str(tmp_path)], "has no checkpoint"),
        (["x", "--save", "/no/such/x.json"], "there is no folder /no/such"),
    ):
        monkeypatch.setattr("sys.argv", ["exact_play.py", *arguments])
        assert main() == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and line in said and said.count("\n") == 1


def test_strong_trumps_are_what_they_say() -> None:
    rounds = list(strong_trumps(50))
    assert len(rounds) > 40 and {r.seat for r in rounds} == {0, 1, 2, 3}
    for r in rounds:
        assert r.trump is not None and {r.trump * 13 + rank for rank in (10, 11, 12)} <= set(r.hands[r.seat])
    assert prefers_two(UniformEvaluator(), rounds) == 0.0
    assert np.allclose(bids_of(UniformEvaluator())([shmzero.Round.deal(players=3, cards=1, dealer=2)]), 0.5)
