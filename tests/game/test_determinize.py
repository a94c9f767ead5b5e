"""Determinizations: consistent with what the acting seat saw, exactly uniform, and blind to the true hands.

The truth to compare with is `oracle.consistent_deals`, which enumerates by brute force.
"""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shmzero
from shmzero import SearchConfig, _core, play_rounds, search
from tests.support import oracle
from tests.support.cases import as_round, late_position
from tests.support.fakes import HashEvaluator, RecordingEvaluator


def chi_square_p(observed: Counter, possible: list, samples: int) -> float:
    """Upper tail of Pearson's statistic against equal shares, by the Wilson-Hilferty cube root (exact enough above 5 per cell)."""
    mean = samples / len(possible)
    statistic = sum((observed.get(cell, 0) - mean) ** 2 / mean for cell in possible)
    freedom = len(possible) - 1
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


# players, cards each, cards still held by the seat to act, cards already in the current trick, seats that must have shown a void
SITUATIONS = {
    "three players, one card each, bidding": (3, 1, 1, -1, 0),
    "three players, one card undealt, last two tricks": (3, 17, 2, 0, 0),
    "three players, one void shown": (3, 17, 2, 0, 1),
    "three players, both others void somewhere": (3, 17, 3, 0, 2),
    "three players, mid-trick, one card in": (3, 17, 3, 1, 0),
    "three players, mid-trick, two cards in": (3, 17, 3, 2, 1),
    "three players, four cards undealt": (3, 16, 2, 0, 2),
    "three players, four undealt, mid-trick": (3, 16, 2, 1, 1),
    "four players, nothing undealt": (4, 13, 2, 0, 1),
    "four players, nothing undealt, mid-trick": (4, 13, 2, 2, 2),
    "four players, four undealt": (4, 12, 2, 0, 3),
    "four players, four undealt, mid-trick": (4, 12, 2, 2, 3),
    "four players, last to the trick": (4, 13, 3, 3, 3),
    "four players, everybody void, three left": (4, 13, 3, 1, 4),
    "four players, two left of twelve, three in the trick": (4, 12, 2, 3, 2),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_determinize_small_situation_is_uniform_over_all_consistent_deals(name: str) -> None:
    players, cards_each, held, in_trick, num_void = SITUATIONS[name]
    truth = late_position(players, cards_each, held, in_trick, num_void, seed=17, most_deals=2600)
    possible = list(oracle.consistent_deals(truth, truth.seat))
    r = as_round(truth)
    samples = max(4000, 12 * len(possible))
    observed = Counter(tuple(map(tuple, r.determinize(seed).hands)) for seed in range(samples))
    assert set(observed) <= set(possible), "a determinization that the brute force rules out"
    assert chi_square_p(observed, possible, samples) > 1e-3, f"{len(possible)} deals"


def test_determinize_void_shown_in_current_trick_is_respected_at_once() -> None:
    truth = oracle.position("S2 S3 | H4 H5 | S6 H7", None, 2, "0 0 1 | S2 H4")
    r = as_round(truth)
    assert r.seat == 2 and r.voids[1] == [0]
    for seed in range(400):
        assert all(c // 13 != 0 for c in r.determinize(seed).hands[1])


@pytest.mark.parametrize("seed", range(3))
def test_determinize_current_trick_voids_is_uniform_with_unequal_hands(seed: int) -> None:
    truth = late_position(4, 12, held=2, in_trick=3, num_void=1, seed=100 + seed, most_deals=2600, void_now=True)
    assert len({len(hand) for hand in truth.hands}) == 2
    possible = list(oracle.consistent_deals(truth, truth.seat))
    r = as_round(truth)
    samples = max(4000, 12 * len(possible))
    observed = Counter(tuple(map(tuple, r.determinize(s).hands)) for s in range(samples))
    assert set(observed) <= set(possible)
    assert chi_square_p(observed, possible, samples) > 1e-3


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_determinize_anywhere_keeps_everything_the_seat_has_seen(seed: int) -> None:
    rng = random.Random(seed)
    players, cards_each, trump, dealer = oracle.random_settings(rng)
    truth = oracle.Position(oracle.random_deal(rng, players, cards_each), trump, dealer)
    oracle.play_randomly(truth, rng, rng.randrange(players * (cards_each + 1)))
    r = as_round(truth)
    for draw in range(5):
        d = r.determinize(seed + draw)
        assert oracle.consistent(truth, truth.seat, d.hands)
        assert (d.phase, d.seat, d.bids, d.tricks_won) == (r.phase, r.seat, r.bids, r.tricks_won)
        assert (d.trick, d.played, d.voids) == (r.trick, r.played, r.voids)
        assert d.legal_actions() == r.legal_actions()
        assert r.hands == truth.hands, "the round itself stays as it was"
        while d.phase != "done":
            d.apply(d.legal_actions()[-1])
        assert len(d.scores()) == players


def test_determinize_same_seed_twice_gives_the_same_world_and_other_seeds_others() -> None:
    truth = late_position(4, 9, held=6, in_trick=1, num_void=0, seed=3)
    r = as_round(truth)
    worlds = [tuple(map(tuple, r.determinize(seed).hands)) for seed in range(50)]
    assert worlds == [tuple(map(tuple, r.determinize(seed).hands)) for seed in range(50)]
    assert len(set(worlds)) == 50


def test_determinize_is_a_function_of_the_information_set() -> None:
    """Whoever draws from a drawn world draws what he would have drawn from the truth."""
    rng = random.Random(5)
    for _ in range(100):
        players, cards_each, trump, dealer = oracle.random_settings(rng)
        truth = oracle.Position(oracle.random_deal(rng, players, cards_each), trump, dealer)
        oracle.play_randomly(truth, rng, rng.randrange(players * (cards_each + 1)))
        r = as_round(truth)
        for seed in range(5):
            assert r.determinize(seed + 1000).determinize(seed).hands == r.determinize(seed).hands


def test_determinize_eight_players_with_many_voids_ends_and_is_consistent() -> None:
    """The watchdog of the suite is what bounds it: a sampler that rejects and retries does not come back from these."""
    rng = random.Random(8)
    positions = 0
    while positions < 40:
        # Hands sorted by suit, so that almost every card shows a void.
        deck = sorted(range(52), key=lambda c: c + rng.random() * 14)[:48]
        truth = oracle.Position(
            [deck[6 * s : 6 * s + 6] for s in range(8)], rng.choice([0, 1, 2, 3, None]), rng.randrange(8)
        )
        oracle.play_randomly(truth, rng, 8 + rng.randrange(8, 40))
        if sum(map(len, truth.voids)) < 8:
            continue
        positions += 1
        r = as_round(truth)
        for seed in range(50):
            assert oracle.consistent(truth, truth.seat, r.determinize(seed).hands)


def test_determinize_only_one_consistent_deal_is_found() -> None:
    # Every seat holds one whole suit: after three tricks led by 0, 1 and 2 nobody has a secret from seat 3.
    hands = [[13 * s + k for k in range(13)] for s in range(4)]
    truth = oracle.Position(hands, None, 3)
    for bid in (0, 0, 0, 0):
        truth.apply(bid)
    while len(truth.trick) < 3:
        truth.apply(truth.legal()[0])
    # Seats 1 and 2 lack spades, seat 0 is known to hold some: they share hearts and clubs freely.
    r = as_round(truth)
    for seed in range(200):
        world = r.determinize(seed).hands
        assert oracle.consistent(truth, 3, world)
        assert world[0] == truth.hands[0], "seats 1 and 2 are void in spades, so all spades are with seat 0"


def test_determinize_with_the_deals_own_seed_hits_the_true_deal_no_more_often_than_chance() -> None:
    expected = variance = 0.0
    hits = 0
    for s in range(1000):
        r = shmzero.Round.deal(players=3, cards=17, trump=s % 4, dealer=s % 3, seed=s)
        truth = oracle.Position(r.hands, s % 4, s % 3)
        rng = random.Random(s)
        oracle.play_randomly(truth, rng, 3 + 45)
        for action in oracle.history(truth):
            r.apply(action)
        chance = 1 / sum(1 for _ in oracle.consistent_deals(truth, truth.seat))
        expected += chance
        variance += chance * (1 - chance)
        hits += r.determinize(s).hands == r.hands
    assert abs(hits - expected) <= 4 * math.sqrt(variance), f"{hits} hits, {expected:.1f} expected"


def test_determinize_with_the_deals_own_seed_knows_no_card_of_a_fresh_deal() -> None:
    same_cards = hits = 0
    for s in range(1000):
        r = shmzero.Round.deal(players=4, cards=5, trump=None, dealer=0, seed=s)
        world = r.determinize(s)
        hits += world.hands == r.hands
        same_cards += sum(
            len(set(a) & set(b)) for seat, (a, b) in enumerate(zip(r.hands, world.hands, strict=True)) if seat != r.seat
        )
    # 15 hidden cards, each at its place with probability 5 of 47.
    mean, deviation = 15 * 5 / 47, math.sqrt(15 * 5 / 47 * 42 / 47)
    assert hits == 0
    assert abs(same_cards / 1000 - mean) < 4 * deviation / math.sqrt(1000)


def test_determinize_finished_round_is_the_round_itself() -> None:
    r = as_round(oracle.position("SA | S2 | S3", None, 2, "1 0 1 | SA S2 S3"))
    twin = r.determinize(0)
    assert twin.phase == "done" and twin.hands == [[], [], []] and twin.scores() == r.scores()


def test_worlds_of_a_search_have_nothing_to_do_with_the_stream_that_dealt_the_round() -> None:
    """One seed, and one id, for the deal and for the search of it: its worlds meet the truth as often as chance does.

    The seat to act is the last that was dealt to, so that a world drawn from the deal's stream would begin with the
    deal's own draws. Hands are read off the rows asked for the other seats (equal up to a renaming of plain suits).
    """
    config = SearchConfig(determinizations=1, simulations=1, opponents="maximise")
    met = {"search": 0, "determinize": 0, "chance": 0}
    for seed in range(1000):
        (record,) = play_rounds(
            HashEvaluator(), 1, SearchConfig(simulations=0), seed=seed, players="3", cards="1", dealer="1"
        )
        dealt = _core.decode_record(record)
        truth = shmzero.Round.from_hands(dealt["hands"], trump=dealt["trump"], dealer=1)
        assert truth.seat == 2
        evaluator = RecordingEvaluator(HashEvaluator())
        search(truth, evaluator, config, seed=seed)
        asked = {state for state, _ in evaluator.seen()[1:]}
        for bid in truth.legal_actions():
            worlds = {"determinize": truth.determinize(seed), "chance": truth.determinize(10**6 + seed)}
            true = truth.copy()
            for r in (true, *worlds.values()):
                r.apply(bid)
            for seat in (0, 1):
                wanted = true.features(seat).tobytes()
                met["search"] += wanted in asked
                for name, world in worlds.items():
                    met[name] += world.features(seat).tobytes() == wanted
    # Both bids are compared with what was asked after the one that was tried.
    most = met["chance"] / 2 + 5 * math.sqrt(met["chance"])
    assert 0 < met["search"] <= most and 0 < met["determinize"] <= 2 * most, met
