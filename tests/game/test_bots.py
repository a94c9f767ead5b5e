"""Opponents without a network, and the endgame solver.

Truth comes from `oracle.MaxnSolver` (plain Python) and from the rules of the information set.
"""

from __future__ import annotations

import random

import pytest

from shmzero import _core
from shmzero.matches.agents import make_agent
from tests.support import oracle
from tests.support.cases import as_round, random_position, round_of

NAMES = ("random", "threshold", "mc20", "uct3x10", "uct3x10+solver")


def bot(name: str) -> _core.BotConfig:
    config = make_agent(name).config
    assert isinstance(config, _core.BotConfig)
    return config


# --- bots -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_bots_act_legally_with_all_players_and_hand_sizes(name: str) -> None:
    rng = random.Random(1)
    seen = set()
    for players in range(3, 9):
        for cards_each in range(1, 52 // players + 1):
            for _ in range(3):
                truth = random_position(rng, players, cards_each)
                assert _core.bot_action(as_round(truth), bot(name), rng.getrandbits(64)) in truth.legal()
                seen.add((players, cards_each))
    assert len(seen) == 61


@pytest.mark.parametrize("name", NAMES)
def test_bots_see_their_information_set_only(name: str) -> None:
    rng = random.Random(2)
    moved = 0
    for seed in range(40):
        r = as_round(random_position(rng, rng.randint(3, 6), rng.randint(1, 7)))
        expected = _core.bot_action(r, bot(name), seed)
        for k in range(5):
            world = r.determinize(k)
            moved += world.hands != r.hands
            assert _core.bot_action(world, bot(name), seed) == expected
    assert moved > 150


@pytest.mark.parametrize("name", ["random", "mc20", "uct3x10"])
def test_bots_that_draw_differ_by_seed_alone(name: str) -> None:
    rng = random.Random(3)
    rounds = [as_round(random_position(rng, 4, 8, 0)) for _ in range(10)]
    choices = [[_core.bot_action(r, bot(name), seed) for r in rounds] for seed in (1, 1, 2)]
    assert choices[0] == choices[1] != choices[2]


def test_bot_action_of_a_finished_round_raises() -> None:
    truth = oracle.position("SA | S2 | S3", "S", 2, "1 0 1 | SA S2 S3")
    with pytest.raises(ValueError, match="the round is over"):
        _core.bot_action(as_round(truth), bot("random"), 0)


@pytest.mark.parametrize(
    ("deal", "trump", "dealer", "moves", "expected"),
    [
        # Bids what its cards are worth; the last bidder keeps to the hook.
        ("SA SK SQ | S2 S3 S4 | C2 C3 C4", "S", 2, "", "3"),
        ("C2 D3 H2 | S2 S3 S4 | C3 C4 C5", "S", 2, "", "0"),
        ("SA | C3 | H4", "S", 2, "", "1"),
        ("C2 | SA | H4", "S", 0, "", "1"),
        # Needs a trick: last wins as cheaply as it can, a ruff is the lowest trump, the hopeless card goes first.
        ("H9 C2 | HT C3 | HA HJ", "S", 2, "0 0 1 | H9 HT", "HJ"),
        ("H9 C2 | HT C3 | S5 S7", "S", 2, "0 0 1 | H9 HT", "S5"),
        ("H9 C2 | HT C3 | H2 H8", "S", 2, "0 0 1 | H9 HT", "H2"),
        # In the middle it plays its highest.
        ("H9 C2 | HA HT | H3 C3", "S", 2, "0 1 0 | H9", "HA"),
        # Needs none: ducks with the highest loser; last and forced to win, wins high; before others, low.
        ("HQ C2 | H9 C3 | HJ H2", "S", 2, "0 1 0 | HQ H9", "HJ"),
        ("H9 C2 | H5 C3 | HJ HA", "S", 2, "0 1 0 | H9 H5", "HA"),
        ("H9 C2 | HT HA | H3 C3", "S", 2, "0 0 0 | H9", "HT"),
        # Leads its best when it needs a trick, its worst when not.
        ("SA H2 | H9 C3 | HJ HT", "S", 2, "1 0 0", "SA"),
        ("SA H2 | H9 C3 | HJ HT", "S", 2, "0 0 0", "H2"),
    ],
)  # fmt: skip
def test_threshold_bot_plays_by_its_rules(deal: str, trump: str, dealer: int, moves: str, expected: str) -> None:
    action = _core.bot_action(round_of(deal, trump, dealer, moves), bot("threshold"))
    assert action == oracle.actions(expected)[0]


def test_monte_carlo_finds_the_only_bid_that_can_be_met() -> None:
    # The ace of trumps wins its trick in every world.
    r = round_of("SA | C3 | H4", "S", 2)
    assert all(_core.bot_action(r, bot("mc40"), seed) == 1 for seed in range(20))


@pytest.mark.slow
def test_uct_without_search_beyond_the_leaf_averages_the_solver_over_worlds() -> None:
    """Two cards left of a fully dealt deck, so that all consistent deals can be solved one by one.

    With one visit for each action the choice is the action of the higher mean solved value; playouts would choose otherwise.
    """
    rng = random.Random(5)
    config = _core.BotConfig(_core.BotKind.uct, worlds=1500, simulations=2, solved_cards=12)
    unsolved = _core.BotConfig(_core.BotKind.uct, worlds=1500, simulations=2)
    clear = otherwise = 0
    while clear < 25:
        truth = random_position(rng, 3, 17, 3 * 16)
        if len(truth.legal()) < 2:
            continue
        means = dict.fromkeys(truth.legal(), 0.0)
        deals = list(oracle.consistent_deals(truth, truth.seat))
        for hands in deals:
            world = truth.copy()
            world.hands = [sorted(hand) for hand in hands]
            for action, value in oracle.MaxnSolver(world, last=False).best_actions(world)[1].items():
                means[action] += value / len(deals)
        worse, better = sorted(means, key=means.__getitem__)
        if means[better] - means[worse] < 2.5:
            continue
        clear += 1
        r = as_round(truth)
        assert _core.bot_action(r, config, clear) == better
        otherwise += _core.bot_action(r, unsolved, clear) != better
    assert otherwise > 0


# --- solver -----------------------------------------------------------------------------------------------------------------


def test_solve_equals_brute_force() -> None:
    """600 positions: scores of all seats, and the choice, of max^n with ties to the first action."""
    rng = random.Random(6)
    phases = {"bidding": 0, "playing": 0}
    in_trick = 0
    for _ in range(600):
        players = rng.choice([3, 3, 4, 5])
        cards_each = rng.randint(1, {3: 3, 4: 2, 5: 2}[players])
        truth = random_position(rng, players, cards_each)
        if truth.phase == "bidding" and players * cards_each > 6:
            oracle.play_randomly(truth, rng, players - sum(bid is not None for bid in truth.bids))
        check_solution(truth)
        phases[truth.phase] += 1
        in_trick += bool(truth.trick)
    assert phases["bidding"] > 50 and phases["playing"] > 300 and in_trick > 150


def test_solve_the_last_tricks_of_long_rounds_equals_brute_force() -> None:
    """Most cards are gone, so that neighbours in a hand are far apart in rank: where cards are merged."""
    rng = random.Random(7)
    for _ in range(150):
        players = rng.choice([3, 4])
        cards_each = 52 // players
        left = 3 if players == 3 else 2
        check_solution(
            random_position(rng, players, cards_each, players * (1 + cards_each - left) + rng.randrange(players))
        )


def check_solution(truth: oracle.Position) -> None:
    solver = oracle.MaxnSolver(truth, last=False)
    choice, values = solver.best_actions(truth)
    action, scores = _core.solve(as_round(truth))
    after = truth.copy()
    after.apply(choice)
    assert action == choice, oracle.deal_text(truth.hands)
    assert tuple(scores) == solver.solve(*oracle._key(after))
    assert scores[truth.seat] == max(values.values())


def test_solve_of_penalties_gives_negative_scores() -> None:
    # Seat 2 bid both tricks and wins none; the scores of others stand.
    rules = _core.Rules(scoring="penalty")
    r = _core.Round.from_hands(oracle.deal("SA SK | S4 S5 | S2 S3"), trump=0, dealer=2, rules=rules)
    for action in oracle.actions("2 0 2"):
        r.apply(action)
    assert _core.solve(r)[1] == [12, 10, -2]


def test_solve_of_too_much_or_nothing_raises() -> None:
    with pytest.raises(ValueError, match="20 cards are held; allowed: at most 16"):
        _core.solve(_core.Round.deal(players=4, cards=5))
    with pytest.raises(ValueError, match="the round is over"):
        _core.solve(round_of("SA | S2 | S3", "S", 2, "1 0 1 | SA S2 S3"))
