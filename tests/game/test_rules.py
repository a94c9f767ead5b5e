"""The core's rules against the plain-Python oracle, action by action, and every kind of illegal input."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shmzero
from shmzero.errors import IllegalAction
from tests.support import oracle
from tests.support.cases import round_of

HOOKS = [1, 1, 1, None, 3]  # the default three times as often as never and "from three cards"


def compare_everything(r: shmzero.Round, truth: oracle.Position) -> None:
    assert r.hands == truth.hands
    assert r.bids == truth.bids
    assert r.tricks_won == truth.tricks_won
    assert r.trick == truth.trick
    assert r.played == truth.played
    assert r.voids == truth.voids


def play_both(
    rng: random.Random, settings_: tuple[int, int, int | None, int], hook_from: int | None, thorough: bool
) -> None:
    players, cards_each, trump, dealer = settings_
    hands = oracle.random_deal(rng, players, cards_each)
    truth = oracle.Position([list(hand) for hand in hands], trump, dealer, hook_from)
    r = shmzero.Round.from_hands(hands, trump=trump, dealer=dealer, rules=shmzero.Rules(hook_from=hook_from))
    while (phase := truth.phase) != "done":
        legal = truth.legal()
        assert r.phase == phase
        assert r.seat == truth.seat
        assert r.legal_actions() == legal
        if thorough:
            compare_everything(r, truth)
        # Bids near the mean make exact bids, hence points, likely.
        action = min(legal, key=lambda b: abs(b - rng.random() * 3)) if phase == "bidding" else rng.choice(legal)
        truth.apply(action)
        r.apply(action)
    assert r.phase == "done" and r.legal_actions() == []
    compare_everything(r, truth)
    assert r.scores() == truth.scores()
    assert r.utilities() == pytest.approx(truth.utilities(), abs=1e-6)
    assert sum(r.tricks_won) == cards_each


@pytest.mark.parametrize("part", range(8))
def test_round_random_play_agrees_with_oracle_at_every_step(part: int) -> None:
    """20,400 rounds in all: 2,550 in each part, every player count, hand size and trump among them."""
    rng = random.Random(f"rules {part}")
    everything = [(p, c, t) for p in range(3, 9) for c in range(1, 52 // p + 1) for t in (0, 1, 2, 3, None)]
    for index in range(2550):
        players, cards_each, trump = everything[(index * 8 + part) % len(everything)] if index % 4 == 0 else small(rng)
        play_both(rng, (players, cards_each, trump, rng.randrange(players)), rng.choice(HOOKS), thorough=index % 8 == 0)


def small(rng: random.Random) -> tuple[int, int, int | None]:
    """The sizes that are played most: 3-8 players with at most six cards."""
    players = rng.randint(3, 8)
    return players, rng.randint(1, 6), rng.choice([0, 1, 2, 3, None])


def test_round_worked_example_scores_as_written_in_the_rules() -> None:
    # Hearts are trump. West leads the ace of spades, north follows, east has no spade and trumps it.
    r = round_of("SA C2 | S5 C9 | H2 CA", "H", 2, "1 0 2 | SA S5 H2")
    assert r.tricks_won == [0, 0, 1] and r.seat == 2 and r.voids == [[], [], [0]]
    for action in oracle.cards("CA C2 C9"):
        r.apply(action)
    assert r.scores() == [0, 10, 12]
    assert r.utilities() == pytest.approx([0, 10 / 12, 1])


def test_round_no_trump_only_the_suit_led_counts() -> None:
    r = round_of("C2 | SA | HA", None, 2, "1 0 1 | C2 SA HA")
    assert r.tricks_won == [1, 0, 0]


def test_round_last_bidder_may_not_bring_the_sum_to_the_number_of_cards() -> None:
    assert round_of("SA SK | HA HK | CA CK", "S", 2, "1 0").legal_actions() == [0, 2]
    assert round_of("SA SK | HA HK | CA CK", "S", 2, "2 1").legal_actions() == [0, 1, 2]


@pytest.mark.parametrize(
    ("hook_from", "cards_each", "legal"), [(1, 1, [0]), (None, 1, [0, 1]), (2, 1, [0, 1]), (2, 2, [0, 1])]
)
def test_rules_hook_from_k_cards_forbids_only_from_there(
    hook_from: int | None, cards_each: int, legal: list[int]
) -> None:
    hands = [[13 * s + k for k in range(cards_each)] for s in range(3)]
    r = shmzero.Round.from_hands(hands, trump=None, dealer=2, rules=shmzero.Rules(hook_from=hook_from))
    r.apply(0)
    r.apply(0)
    assert r.legal_actions() == legal


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), players=st.integers(3, 8), data=st.data())
def test_round_deal_any_settings_deals_distinct_cards_the_same_each_time(
    seed: int, players: int, data: st.DataObject
) -> None:
    cards_each = data.draw(st.integers(1, 52 // players))
    trump = data.draw(st.sampled_from([0, 1, 2, 3, None]))
    dealer = data.draw(st.integers(0, players - 1))
    r = shmzero.Round.deal(players=players, cards=cards_each, trump=trump, dealer=dealer, seed=seed)
    everything = [c for hand in r.hands for c in hand]
    assert [len(hand) for hand in r.hands] == [cards_each] * players
    assert len(set(everything)) == len(everything) and set(everything) <= set(range(52))
    assert r.seat == (dealer + 1) % players and r.phase == "bidding"
    again = shmzero.Round.deal(players=players, cards=cards_each, trump=trump, dealer=dealer, seed=seed)
    assert again.hands == r.hands


def test_round_deal_over_many_seeds_gives_every_card_to_every_seat_equally_often() -> None:
    num = 6000
    counts = [[0] * 52 for _ in range(3)]
    for seed in range(num):
        r = shmzero.Round.deal(players=3, cards=5, trump=0, dealer=0, seed=seed)
        for seat, hand in enumerate(r.hands):
            for c in hand:
                counts[seat][c] += 1
    mean = num * 5 / 52
    statistic = sum((n - mean) ** 2 / mean for row in counts for n in row)
    assert 90 < statistic < 230, "about 153 degrees of freedom"


def test_round_copy_then_play_leaves_the_original_alone() -> None:
    r = round_of("SA SK | HA HK | CA CK", "S", 2, "1 0 2")
    twin = r.copy()
    twin.apply(oracle.card("SA"))
    assert r.trick == [] and r.hands[0] == oracle.cards("SK SA") and twin.trick == [(0, 12)]


# --- what is refused, and how ---------------------------------------------------------------------------------------------------

BIDDING = ("SA SK | HA HK | CA CK", "S", 2, "1 0")  # seat 2 is the dealer and may not bid 1
PLAYING = ("SA HK | SK HA | CA CK", "H", 2, "1 0 2 | SA")  # seat 1 must follow with the king of spades


@pytest.mark.parametrize("action", [-1, 1, 3, 14, 51, 52, 255, 256, -(2**31), 2**31, 2**63, 2**70])
def test_apply_illegal_bid_raises_naming_it_and_what_is_allowed(action: int) -> None:
    r = round_of(*BIDDING)
    with pytest.raises(IllegalAction) as refusal:
        r.apply(action)
    assert str(action) in str(refusal.value)
    assert "0" in str(refusal.value) and "2" in str(refusal.value)
    assert r.bids == [1, 0, None] and r.legal_actions() == [0, 2]


@pytest.mark.parametrize("action", [-1, 0, 12, 25, 38, 52, 63, 64, 64 + 11, 256 + 11, 2**32 + 11, -(2**63), 2**64 + 11])
def test_apply_card_not_held_or_not_following_raises_naming_it(action: int) -> None:
    r = round_of(*PLAYING)
    with pytest.raises(IllegalAction) as refusal:
        r.apply(action)
    assert str(action) in str(refusal.value)
    assert r.trick == [(0, 12)] and r.legal_actions() == [11]


def test_apply_in_finished_round_raises() -> None:
    r = round_of("SA | S2 | S3", None, 2, "1 0 1 | SA S2 S3")
    with pytest.raises(IllegalAction, match="0: the round is over"):
        r.apply(0)
    assert not r.mask().any()


@pytest.mark.parametrize("action", ["SA", None, 1.5, [1]])
def test_apply_something_that_is_no_number_raises_type_error(action: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        round_of(*BIDDING).apply(action)  # type: ignore[arg-type]


def test_illegal_action_is_a_value_error() -> None:
    assert issubclass(IllegalAction, ValueError) and issubclass(IllegalAction, shmzero.ShmzeroError)


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({"players": 2}, "2"),
        ({"players": 9}, "9"),
        ({"players": -1}, "-1"),
        ({"players": 2**40}, str(2**40)),
        ({"cards": 0}, "0"),
        ({"cards": -3}, "-3"),
        ({"cards": 14}, "14"),
        ({"players": 8, "cards": 7}, "7"),
        ({"players": 3, "cards": 18}, "18"),
        ({"cards": 2**40}, str(2**40)),
        ({"trump": 4}, "4"),
        ({"trump": -1}, "-1"),
        ({"trump": 17}, "17"),
        ({"dealer": 4}, "4"),
        ({"dealer": -1}, "-1"),
        ({"dealer": 256}, "256"),
    ],
)
def test_deal_impossible_settings_raise_value_error_naming_the_value(settings_: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named.replace("-", r"\-")):
        shmzero.Round.deal(**({"players": 4, "cards": 5, "trump": 1, "dealer": 0, "seed": 7} | settings_))


@pytest.mark.parametrize(
    ("hands", "named"),
    [
        ([[0], [1]], "2"),
        ([[i] for i in range(9)], "9"),
        ([], "0"),
        ([[], [], []], "0"),
        ([[0], [1], [2, 3]], "2"),
        ([[0, 1], [2, 3], [4]], "1"),
        ([[0], [1], [0]], "0"),
        ([[7, 7], [1, 2], [3, 4]], "7"),
        ([[0], [1], [52]], "52"),
        ([[0], [1], [-1]], "-1"),
        ([[0], [1], [2**40]], str(2**40)),
        ([list(range(18)), list(range(18, 36)), list(range(34, 52))], "18"),
    ],
)
def test_from_hands_impossible_deal_raises_value_error_naming_the_value(hands: list[list[int]], named: str) -> None:
    with pytest.raises(ValueError, match=named.replace("-", r"\-")):
        shmzero.Round.from_hands(hands, trump=1, dealer=0)


def test_from_hands_trump_or_dealer_out_of_range_raises() -> None:
    with pytest.raises(ValueError, match="5"):
        shmzero.Round.from_hands([[0], [1], [2]], trump=5, dealer=0)
    with pytest.raises(ValueError, match="3"):
        shmzero.Round.from_hands([[0], [1], [2]], trump=None, dealer=3)


@pytest.mark.parametrize("seat", [-1, 3, 8, 255, 2**40])
def test_features_seat_out_of_range_raises(seat: int) -> None:
    with pytest.raises(ValueError, match=str(seat).replace("-", r"\-")):
        round_of(*PLAYING).features(seat)


def test_scores_before_the_end_raise() -> None:
    with pytest.raises(ValueError, match="still playing"):
        round_of(*PLAYING).scores()
    with pytest.raises(ValueError, match="still playing"):
        round_of(*PLAYING).utilities()


# --- rules as data, and games ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scoring", "expected"), [("exact", [0, 10, 12]), ("tricks", [0, 10, 12]), ("penalty", [-1, 10, 12])]
)
def test_rules_scoring_is_a_choice(scoring: str, expected: list[int]) -> None:
    r = shmzero.Round.from_hands(
        oracle.deal("SA C2 | S5 C9 | H2 CA"), trump=1, dealer=2, rules=shmzero.Rules(scoring=scoring)
    )
    for action in oracle.actions("1 0 2 | SA S5 H2 CA C2 C9"):
        r.apply(action)
    assert r.scores() == expected


def test_rules_scoring_tricks_counts_tricks_where_the_bid_was_missed() -> None:
    r = shmzero.Round.from_hands(
        oracle.deal("SA | S5 | H2"), trump=None, dealer=2, rules=shmzero.Rules(scoring="tricks")
    )
    for action in oracle.actions("0 0 0 | SA S5 H2"):
        r.apply(action)
    assert r.scores() == [1, 10, 10]


@pytest.mark.parametrize("rivalry", [0.0, 0.5, 1.0])
def test_utilities_rivalry_takes_the_mean_of_the_others_off(rivalry: float) -> None:
    moves = "1 0 2 | SA S5 H2 CA C2 C9"
    r, truth = round_of("SA C2 | S5 C9 | H2 CA", "H", 2, moves), oracle.position("SA C2 | S5 C9 | H2 CA", "H", 2, moves)
    assert r.utilities(rivalry) == pytest.approx(truth.utilities(rivalry), abs=1e-6)


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ({"hook_from": -1}, "-1"),
        ({"hook_from": 99}, "99"),
        ({"scoring": "golf"}, "golf"),
        ({"sequence": [3, 0]}, "0"),
        ({"sequence": [18]}, "18"),
        ({"trumps": []}, "trumps"),
        ({"trumps": [0, 4]}, "4"),
    ],
)
def test_rules_impossible_raise_value_error_naming_the_value(made: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        shmzero.Rules(**made)  # type: ignore[arg-type]


def play_out(r: shmzero.Round, rng: random.Random) -> None:
    while r.phase != "done":
        r.apply(rng.choice(r.legal_actions()))


@pytest.mark.parametrize(("players", "cards_each", "dealer"), [(3, 5, 0), (4, 4, 2), (8, 6, 7), (5, 1, 1), (3, 17, 1)])
def test_game_rounds_come_in_the_order_of_the_rules(players: int, cards_each: int, dealer: int) -> None:
    game = shmzero.Game(players=players, cards=cards_each, dealer=dealer, seed=9)
    rng = random.Random(1)
    sizes = [*range(cards_each, 1, -1), *[1] * players, *range(2, cards_each + 1)]
    totals = [0] * players
    assert game.num_rounds == len(sizes)
    for index, size in enumerate(sizes):
        assert not game.done and game.round_index == index and game.totals == totals
        r = game.round
        assert r.cards == size and [len(hand) for hand in r.hands] == [size] * players
        assert r.trump == [0, 1, 2, 3, None][index % 5]
        assert r.dealer == (dealer + index) % players
        assert r.seat == (dealer + index + 1) % players
        play_out(r, rng)
        totals = [a + b for a, b in zip(totals, r.scores(), strict=True)]
        game.next_round()
    assert game.done and game.totals == totals


def test_game_own_sequence_and_trumps_are_followed() -> None:
    game = shmzero.Game(players=4, cards=5, rules=shmzero.Rules(sequence=[2, 7, 1], trumps=[None, 3]), seed=1)
    seen = []
    while not game.done:
        seen.append((game.round.cards, game.round.trump))
        play_out(game.round, random.Random(2))
        game.next_round()
    assert seen == [(2, None), (7, 3), (1, None)]


def test_game_next_round_too_early_or_too_late_raises() -> None:
    game = shmzero.Game(players=3, cards=1, seed=1)
    with pytest.raises(ValueError, match="bidding"):
        game.next_round()
    for _ in range(3):
        play_out(game.round, random.Random(3))
        game.next_round()
    with pytest.raises(ValueError, match="over"):
        game.next_round()


def test_game_same_seed_deals_the_same_and_every_round_differently() -> None:
    def deals(seed: int) -> list[list[list[int]]]:
        game, found = shmzero.Game(players=4, cards=1, seed=seed), []
        while not game.done:
            found.append(game.round.hands)
            play_out(game.round, random.Random(4))
            game.next_round()
        return found

    assert deals(5) == deals(5) != deals(6)
    assert len({str(hands) for hands in deals(5)}) == 4


@pytest.mark.parametrize(
    "settings_", [{"players": 2}, {"cards": 0}, {"players": 8, "cards": 7}, {"dealer": 4}, {"dealer": -1}]
)
def test_game_impossible_settings_raise(settings_: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        shmzero.Game(**({"players": 4, "cards": 5, "dealer": 0} | settings_))


def test_game_sequence_that_the_deck_does_not_allow_raises() -> None:
    with pytest.raises(ValueError, match="14"):
        shmzero.Game(players=4, cards=5, rules=shmzero.Rules(sequence=[5, 14]))
