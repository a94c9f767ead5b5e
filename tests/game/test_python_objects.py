"""Rounds, rules and games as Python objects: copies, pickles, equality, text; and numpy's numbers wherever numbers go."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy as np
import pytest

import shmzero
from shmzero import Game, Round, Rules, SearchConfig, play_rounds, search
from shmzero.matches.duplicate import play_match
from shmzero.mcts.evaluators import HashEvaluator
from tests.support.cases import as_round, random_position, round_of

COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}
RULES = Rules(hook_from=2, scoring="penalty", sequence=[3, 1, 2], trumps=[1, None])


def everything(r: Round) -> list[Any]:
    """All that a round says of itself."""
    names = (
        "phase",
        "players",
        "cards",
        "trump",
        "dealer",
        "seat",
        "leader",
        "actions",
        "hands",
        "bids",
        "tricks_won",
        "trick",
        "voids",
    )
    said = [getattr(r, name) for name in names]
    return [*said, r.legal_actions(), r.features().tobytes(), r.scores() if r.phase == "done" else None]


def played(game: Game, rng: random.Random, rounds: int, actions: int) -> Game:
    """The game after so many rounds and actions, or at its end."""
    for _ in range(rounds):
        while game.round.phase != "done":
            game.round.apply(rng.choice(game.round.legal_actions()))
        game.next_round()
    for _ in range(actions if not game.done else 0):
        if game.round.phase != "done":
            game.round.apply(rng.choice(game.round.legal_actions()))
    return game


@pytest.mark.parametrize("how", COPIES)
def test_round_copied_is_equal_and_goes_its_own_way(how: str) -> None:
    rng = random.Random(3)
    for _ in range(40):
        r = as_round(random_position(rng, rng.randint(3, 8), rng.randint(1, 6)))
        other = COPIES[how](r)
        assert other == r and other is not r and everything(other) == everything(r)
        other.apply(other.legal_actions()[-1])
        assert other != r and len(other.actions) == len(r.actions) + 1


def test_round_equality_is_of_the_deal_its_rules_and_every_action() -> None:
    deal = {"players": 4, "cards": 5, "trump": 1, "dealer": 2, "seed": 7}
    assert Round.deal(**deal) == Round.deal(**deal) != 7  # type: ignore[arg-type]
    for name, other in (("cards", 4), ("trump", None), ("dealer", 1), ("seed", 8), ("players", 3), ("rules", RULES)):
        assert Round.deal(**deal) != Round.deal(**deal | {name: other}), name  # type: ignore[arg-type]


def test_rounds_and_games_cannot_be_hashed_and_rules_can() -> None:
    for changes in (Round.deal(), Game()):
        with pytest.raises(TypeError, match="unhashable"):
            hash(changes)
    assert len({RULES, copy.copy(RULES), Rules(), Rules(hook_from=None)}) == 3


@pytest.mark.parametrize("how", COPIES)
def test_rules_copied_are_equal_and_their_text_makes_them_again(how: str) -> None:
    for rules in (RULES, Rules(), Rules(hook_from=None)):
        other = COPIES[how](rules)
        assert rules == other and eval(repr(rules)) == rules and hash(other) == hash(rules)
    assert (
        Rules() != RULES
        and repr(RULES) == "Rules(hook_from=2, scoring='penalty', sequence=[3, 1, 2], trumps=[1, None])"
    )


@pytest.mark.parametrize("how", COPIES)
def test_game_copied_plays_on_alike_and_apart(how: str) -> None:
    for rounds, actions in ((0, 0), (1, 5), (2, 9), (3, 0)):
        rng = random.Random(rounds)
        game = played(Game(players=3, cards=3, rules=RULES, dealer=1, seed=5), rng, rounds, actions)
        other = COPIES[how](game)
        assert other == game and other.totals == game.totals and everything(other.round) == everything(game.round)
        assert other.round is not game.round
        if not game.done:
            ends = [played(one, random.Random(9), 3 - rounds, 0) for one in (game, other)]
            assert ends[0] == ends[1] and ends[0].done


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copy_of_a_game_and_its_round_keeps_them_together(how: str) -> None:
    game = Game(players=3, cards=2, seed=1)
    for held in ([game, game.round], [game.round, game]):
        one, other = COPIES[how](held)
        of_game, r = (one, other) if isinstance(one, Game) else (other, one)
        assert of_game.round is r


def test_round_of_a_game_in_pickled_form_keeps_its_game() -> None:
    game = played(Game(players=3, cards=3, rules=RULES, seed=5), random.Random(1), 1, 4)
    r = pickle.loads(pickle.dumps(game.round))
    assert r == game.round and np.array_equal(r.features(), game.round.features())


def test_round_pickled_with_what_cannot_be_is_refused() -> None:
    r = round_of("SA C2 | S5 C9 | H2 CA", "H", 2, "1 0 2 | SA")
    hands, trump, dealer, rules, game, actions = r.__getstate__()
    for state, said in (
        ((hands, 7, dealer, rules, game, actions), "trump is 7"),
        ((hands, trump, 3, rules, game, actions), "dealer is 3"),
        (([*hands[:2], [0]], trump, dealer, rules, game, actions), "seat 2 has 1 cards"),
        (([[12, 12], *hands[1:]], trump, dealer, rules, game, actions), "card 12 is dealt twice"),
        ((hands[:2], trump, dealer, rules, game[:5], actions), "players of a pickled round is 2"),
        ((hands, trump, dealer, rules, game[:4], actions), "numbers of its game"),
        ((hands, trump, dealer, rules, [3, 3, 0, 0, 0, 0], actions), "rounds played of a pickled round's game is 3"),
        ((hands, trump, dealer, rules, game, [*actions, 51]), "card 51 of seat 1 is not allowed"),
        ((hands, trump, dealer, rules, game, [1, 0, 1]), "bid 1 of seat 2 is not allowed"),
    ):
        with pytest.raises(ValueError, match=said):
            Round.__new__(Round).__setstate__(state)
    for bad in ((), (1,), "state", (hands, trump, dealer, None, game, actions)):
        with pytest.raises(TypeError):
            Round.__new__(Round).__setstate__(bad)  # type: ignore[arg-type]


def test_game_pickled_with_what_cannot_be_is_refused() -> None:
    game = played(Game(players=3, cards=3, rules=RULES, seed=5), random.Random(1), 2, 4)
    state = game.__getstate__()
    for at, value, said in (
        (4, state[4] + 1, "round 2 of a pickled game is not the one that its seed deals"),
        (5, 1, "not the one"), (5, 0, "points of a pickled game"), (5, 4, "round of a pickled game is 4; allowed: 0..3"),
        (5, 3, "still"), (6, [0, 0], "totals"), (6, [10**9, 0, 0], "points"), (7, Round.deal(), "not "), (7, None, "no round"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            Game.__new__(Game).__setstate__((*state[:at], value, *state[at + 1 :]))


def test_round_text_is_that_of_the_readme() -> None:
    r = round_of("SA C2 | S5 C9 | H2 CA", "H", 2, "1 0")
    assert (
        repr(r) == "<Round bidding, seat 2 to act: SA C2 | S5 C9 | H2 CA, trump H, dealer 2, bids 1 0 -, tricks 0 0 0>"
    )
    r = round_of("SA C2 | S5 C9 | H2 CA", "H", 2, "1 0 2 | SA")
    assert repr(r) == (
        "<Round playing, seat 1 to act: C2 | S5 C9 | H2 CA, trump H, dealer 2, bids 1 0 2, tricks 0 0 0, trick SA led by seat 0>"
    )
    r = round_of("SA C2 | S5 C9 | H2 CA", None, 2, "1 0 2 | SA S5 H2 | C2 C9 CA")
    assert repr(r) == "<Round done: - | - | -, trump none, dealer 2, bids 1 0 2, tricks 1 0 1>"


def test_game_text_tells_where_it_is() -> None:
    game = Game(players=3, cards=3, rules=RULES, seed=5)
    assert repr(game).startswith("<Game in round 1 of 3, totals [0, 0, 0], seed 5: <Round bidding")
    played(game, random.Random(1), 3, 0)
    assert repr(game).startswith(f"<Game over after round 3 of 3, totals {game.totals}, seed 5: <Round done")


class Index:
    """Anything with `__index__`."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32, Index, lambda n: np.array(n)])
def test_numbers_of_numpy_are_taken_wherever_a_number_is(kind: Any) -> None:
    def both(make: Any) -> tuple[Any, Any]:
        return make(int), make(kind)

    one, other = both(lambda n: Round.deal(players=n(4), cards=n(5), trump=n(1), dealer=n(0), seed=n(7)))
    assert one == other
    config = SearchConfig(determinizations=2, simulations=8)
    action = search(one, HashEvaluator(), config, seed=1).action
    assert (
        search(other, HashEvaluator(), SearchConfig(determinizations=kind(2), simulations=kind(8)), seed=kind(1)).action
        == action
    )
    one.apply(action)
    other.apply(kind(action))
    assert one == other and np.array_equal(one.features(kind(0)), other.features(0))
    assert one.action_to_canonical(kind(3)) == one.action_to_canonical(3) and one.determinize(
        kind(3)
    ) == one.determinize(3)
    rules = both(lambda n: Rules(hook_from=n(2), sequence=[n(3), n(1)], trumps=[n(1), None]))
    assert rules[0] == rules[1] and rules[0].hand_sizes(kind(3), kind(3)) == [3, 1]
    games = both(lambda n: Game(players=n(3), cards=n(3), rules=rules[0], dealer=n(1), seed=n(4)))
    assert games[0] == games[1]
    rounds = both(
        lambda n: play_rounds(
            HashEvaluator(), n(3), config, seed=n(5), lanes=n(2), players=n(3), cards=n(2), dealer=n(1)
        )
    )
    assert rounds[0] == rounds[1]
    matches = both(lambda n: play_match("random", "threshold", deals=n(2), players=n(3), cards=n(2), seed=n(3)))
    assert matches[0].mean == matches[1].mean and type(matches[1].deals) is int


def test_arrays_of_hands_and_numbers_and_bools_of_numpy_are_taken() -> None:
    hands = np.arange(12).reshape(3, 4)
    assert Round.from_hands(hands, dealer=np.int8(1)) == Round.from_hands(hands.tolist(), dealer=1)
    config = SearchConfig(c_puct=np.float32(1.25), known_hands=np.bool_(True), simulations=np.int64(3))
    assert config == SearchConfig(c_puct=1.25, known_hands=True, simulations=3)
    assert type(config.c_puct) is float and config.known_hands is True and type(config.simulations) is int
    with pytest.raises(shmzero.ConfigError, match="simulations is True"):
        SearchConfig(simulations=np.bool_(True))  # type: ignore[arg-type]


@pytest.mark.parametrize("action", [1.0, "1", None, np.array([1, 2]), np.float64(1)])
def test_action_that_is_no_whole_number_is_a_type_error(action: Any) -> None:
    with pytest.raises(TypeError):
        Round.deal().apply(action)


def test_action_beyond_all_numbers_is_not_allowed() -> None:
    for action in (-1, 52, 2**70, np.int64(-1), np.uint64(2**64 - 1)):
        with pytest.raises(shmzero.IllegalAction, match=f"bid {action} of seat 1 is not allowed"):
            Round.deal().apply(action)
