"""Features: decoded back to what they say, held against the oracle's view of the seat, blind to what is hidden.

`decode` reads every field of the table in encode.h; `encode` is its inverse, so that a value nobody decodes cannot hide in a row.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shmzero
from shmzero import _core
from tests.support import oracle
from tests.support.cases import as_round, random_position, round_of

SuitMap = tuple[int, int, int, int]  # real suit -> canonical suit


@dataclass
class View:
    """What a row says. Seats are relative to the row's own (0), cards have canonical suits."""

    players: int
    cards: int
    own: dict[int, bool]  # card -> it would take the trick as it stands
    trick: dict[int, tuple[int, bool]]  # card -> (seat, is winning)
    gone: dict[int, int]  # cards of finished tricks -> seat
    bids: list[int | None]
    tricks_won: list[int]
    needed: list[int]
    voids: set[tuple[int, int]]  # (seat 1-7, suit)
    total_differences: list[int]
    dealer: int
    leader: int | None
    cards_left: int
    trick_number: int
    has_trump: bool
    playing: bool
    excess: int  # sum of bids - cards
    hook_applies: bool
    forbidden: int | None
    share_played: float
    next_cards: int


def decode(features: np.ndarray) -> View:
    """What a row of features says; fails where a value is none that the table allows."""
    f = [float(x) for x in features]
    assert len(f) == 256 and f[248:] == [0.0] * 8

    def whole(value: float, unit: float) -> int:
        return round(value * unit)

    (players,) = [3 + i for i in range(6) if f[232 + i] == 1]
    cards = whole(f[238], 13)
    (dealer,) = [i for i in range(8) if f[216 + i] == 1]
    leader = [i for i in range(8) if f[224 + i] == 1]
    return View(
        players=players,
        cards=cards,
        own={c: f[c] == 2 for c in range(52) if f[c]},
        trick={c: (whole(f[52 + c] % 1, 9) - 1, f[52 + c] > 1) for c in range(52) if f[52 + c]},
        gone={c: whole(f[104 + c], 9) - 1 for c in range(52) if f[104 + c]},
        bids=[whole(f[156 + i], 14) - 1 if f[156 + i] else None for i in range(players)],
        tricks_won=[whole(f[164 + i], 13) for i in range(players)],
        needed=[whole(f[172 + i], 13) for i in range(players)],
        voids={(1 + i // 4, i % 4) for i in range(28) if f[180 + i] == 1},
        total_differences=[whole(f[208 + i], 100) for i in range(players)],
        dealer=dealer,
        leader=leader[0] if leader else None,
        cards_left=whole(f[239], 13),
        trick_number=whole(f[240], cards),
        has_trump=f[241] == 1,
        playing=f[242] == 1,
        excess=whole(f[243], 13),
        hook_applies=f[244] == 1,
        forbidden=whole(f[245], 14) - 1 if f[245] else None,
        share_played=f[246],
        next_cards=whole(f[247], 13),
    )


def encode(view: View) -> np.ndarray:
    """The row that a view stands for, rounded to float16 once and widened."""
    f = np.zeros(256, np.float64)
    for c, takes in view.own.items():
        f[c] = 1 + takes
    for c, (seat, winning) in view.trick.items():
        f[52 + c] = (seat + 1) / 9 + winning
    for c, seat in view.gone.items():
        f[104 + c] = (seat + 1) / 9
    for i in range(view.players):
        bid = view.bids[i]
        f[156 + i] = 0 if bid is None else (bid + 1) / 14
        f[164 + i] = view.tricks_won[i] / 13
        f[172 + i] = view.needed[i] / 13
        f[208 + i] = view.total_differences[i] / 100
    for seat, canonical in view.voids:
        f[180 + 4 * (seat - 1) + canonical] = 1
    f[216 + view.dealer] = 1
    if view.leader is not None:
        f[224 + view.leader] = 1
    f[232 + view.players - 3] = 1
    f[238:248] = [
        view.cards / 13,
        view.cards_left / 13,
        view.trick_number / view.cards,
        view.has_trump,
        view.playing,
        view.excess / 13,
        view.hook_applies,
        0 if view.forbidden is None else (view.forbidden + 1) / 14,
        view.share_played,
        view.next_cards / 13,
    ]
    return f.astype(np.float32).astype(np.float16).astype(np.float32)


def view_of(truth: oracle.Position, ego: int, suits: SuitMap) -> View:
    """What the oracle says `ego` knows, in the canonical suits given."""
    n = truth.players

    def canonical(c: int) -> int:
        return suits[c // 13] * 13 + c % 13

    def relative(seat: int) -> int:
        return (seat - ego) % n

    winner = truth.winning()[1] if truth.trick else None
    by_ego = [(ego + i) % n for i in range(n)]
    made = [bid for bid in truth.bids if bid is not None]
    forbidden = truth.cards - sum(made) if truth.phase == "bidding" and truth.hook_applies else None
    return View(
        players=n,
        cards=truth.cards,
        own={canonical(c): takes_trick(truth, ego, c) for c in truth.hands[ego]},
        trick={canonical(c): (relative(seat), c == winner) for seat, c in truth.trick},
        gone={canonical(c): relative(seat) for trick in truth.tricks for seat, c in trick},
        bids=[truth.bids[s] for s in by_ego],
        tricks_won=[truth.tricks_won[s] for s in by_ego],
        needed=[0 if bid is None else bid - truth.tricks_won[s] for s in by_ego for bid in (truth.bids[s],)],
        voids={(relative(s), suits[v]) for s in by_ego[1:] for v in truth.voids[s]},
        total_differences=[0] * n,
        dealer=relative(truth.dealer),
        leader=relative(truth.leader),
        cards_left=len(truth.hands[ego]),
        trick_number=len(truth.tricks),
        has_trump=truth.trump is not None,
        playing=truth.phase == "playing",
        excess=sum(made) - truth.cards,
        hook_applies=truth.hook_applies,
        forbidden=forbidden if forbidden is not None and 0 <= forbidden <= truth.cards else None,
        share_played=0.0,
        next_cards=0,
    )


def takes_trick(truth: oracle.Position, ego: int, c: int) -> bool:
    return bool(truth.trick) and c in truth.hands[ego] and oracle.beats(c, truth.winning()[1], truth.trump)


def suit_maps(trump: int | None) -> list[SuitMap]:
    maps = [m for m in permutations(range(4)) if trump is None or m[trump] == 0]
    return maps  # type: ignore[return-value]


def suits_of(r: shmzero.Round) -> SuitMap:
    """The core's own real -> canonical suit map, in the playing phase."""
    return tuple(r.action_to_canonical(13 * s) // 13 for s in range(4))  # type: ignore[return-value]


def positions(seed: int, num: int) -> list[oracle.Position]:
    rng = random.Random(seed)
    found = []
    for _ in range(num):
        players = rng.randint(3, 8)
        found.append(random_position(rng, players, rng.randint(1, 52 // players)))
    return found


def alike_positions(seed: int, num: int) -> list[oracle.Position]:
    """Positions of a deck with two or three ranks, in which suits differ by little: by who played or who is void."""
    rng = random.Random(seed)
    found = []
    for _ in range(num):
        num_ranks, players = rng.randint(2, 3), rng.randint(3, 4)
        deck = [13 * s + k for s in range(4) for k in range(num_ranks)]
        each = rng.randint(1, len(deck) // players)
        rng.shuffle(deck)
        hands = [deck[each * s : each * (s + 1)] for s in range(players)]
        truth = oracle.Position(hands, rng.choice([0, 1, 2, 3, None]), rng.randrange(players))
        oracle.play_randomly(truth, rng, players + rng.randrange(players * each))
        found.append(truth)
    return found


def test_features_decoded_say_what_the_seat_knows() -> None:
    for truth in positions(1, 1200):
        r = as_round(truth)
        for ego in {truth.seat, (truth.seat + 1) % truth.players, truth.dealer}:
            decoded = decode(r.features(ego))
            maps = [m for m in suit_maps(truth.trump) if view_of(truth, ego, m) == decoded]
            assert maps, (
                f"{oracle.deal_text(truth.hands)} seat {ego}\n{decoded}\n{view_of(truth, ego, suit_maps(truth.trump)[0])}"
            )
            if ego == truth.seat and truth.phase == "playing":
                assert suits_of(r) in maps


def test_features_encoded_again_after_decoding_are_bit_identical() -> None:
    for truth in positions(2, 1000):
        r = as_round(truth)
        for ego in range(truth.players):
            features = r.features(ego)
            assert np.array_equal(encode(decode(features)), features)


def test_features_worked_example_reads_as_the_table_says() -> None:
    r = round_of("SA C2 S7 | S5 H3 C9 | H2 CA S9", "H", 2, "1 0 1 | S7 S5")
    view = decode(r.features())
    assert view.players == 3 and view.cards == 3 and view.playing and view.has_trump
    spades = r.action_to_canonical(oracle.card("S2")) // 13
    assert r.action_to_canonical(oracle.card("H2")) == 0, "trump comes first"
    assert view.trick == {spades * 13 + 5: (1, True), spades * 13 + 3: (2, False)}
    takes = {c for c, would in view.own.items() if would}
    assert spades * 13 + 7 in takes, "the nine of spades beats the seven"
    assert view.bids == [1, 1, 0] and view.needed == [1, 1, 0]
    assert view.dealer == 0 and view.leader == 1


def test_features_are_float16_exact_float32_and_finite() -> None:
    for truth in positions(3, 300):
        f = as_round(truth).features()
        assert f.dtype == np.float32 and f.shape == (256,)
        assert np.isfinite(f).all() and np.array_equal(f.astype(np.float16).astype(np.float32), f)


def test_features_unseen_cards_dealt_anew_are_identical() -> None:
    """Re-dealt by the oracle, not by the core: any assignment that the seat cannot rule out must give the same row."""
    rng = random.Random(4)
    changed = 0
    for truth in positions(4, 500):
        ego = truth.seat
        other = redealt(truth, ego, rng)
        changed += other.hands != truth.hands
        a, b = as_round(truth), as_round(other)
        assert np.array_equal(a.features(), b.features())
        assert np.array_equal(a.mask(), b.mask())
        if truth.phase == "playing":
            assert suits_of(a) == suits_of(b)
    assert changed > 400


def redealt(truth: oracle.Position, ego: int, rng: random.Random) -> oracle.Position:
    """Another deal with the same information set for `ego`: legal swaps of single cards between hidden places."""
    other = truth.copy()
    voids = truth.voids
    undealt = [c for c in truth.unseen(ego) if all(c not in hand for hand in truth.hands)]
    places = [(other.hands[s], s) for s in range(truth.players) if s != ego] + [(undealt, -1)]
    for _ in range(300):
        (a, seat_a), (b, seat_b) = rng.choice(places), rng.choice(places)
        if a is b or not a or not b:
            continue
        i, j = rng.randrange(len(a)), rng.randrange(len(b))
        if (seat_a < 0 or b[j] // 13 not in voids[seat_a]) and (seat_b < 0 or a[i] // 13 not in voids[seat_b]):
            a[i], b[j] = b[j], a[i]
    other.hands = [sorted(hand) for hand in other.hands]
    return other


def renamed(truth: oracle.Position, suits: SuitMap) -> oracle.Position:
    """The same round after a renaming of suits, action by action."""

    def rename(c: int) -> int:
        return suits[c // 13] * 13 + c % 13

    trump = None if truth.trump is None else suits[truth.trump]
    twin = oracle.Position(
        [[rename(c) for c in hand] for hand in oracle.dealt(truth)], trump, truth.dealer, truth.hook_from
    )
    moves = oracle.history(truth)
    num_bids = sum(bid is not None for bid in truth.bids)
    for at, action in enumerate(moves):
        twin.apply(action if at < num_bids else rename(action))
    return twin


def test_features_suits_renamed_are_identical_and_actions_map_alike() -> None:
    """Non-trump suits among themselves, trump with its name, all four in no-trump."""
    rng = random.Random(5)
    for truth in positions(5, 500) + alike_positions(5, 1500):
        suits: SuitMap = tuple(rng.sample(range(4), 4))  # type: ignore[assignment]
        a, b = as_round(truth), as_round(renamed(truth, suits))
        for ego in range(truth.players):
            assert np.array_equal(a.features(ego), b.features(ego)), oracle.deal_text(truth.hands)
        assert np.array_equal(a.mask(), b.mask())
        if truth.phase == "playing":
            # Suits that the seat cannot tell apart may trade places; the cards must still come out as cards it may play.
            legal = b.legal_actions()
            assert sorted(b.action_from_canonical(a.action_to_canonical(c)) for c in a.legal_actions()) == legal


def test_features_suits_that_differ_by_shown_voids_alone_keep_their_order() -> None:
    # Seat 0 has played the five of spades and of hearts; only in spades did the others show that they have none.
    truth = oracle.position(
        "S5 D5 H5 C9 | C2 DA D2 D7 | C3 D3 C4 C5", None, 2, "0 0 0 | S5 C2 C3  D5 DA D3  D2 C4 H5  D7"
    )
    assert truth.seat == 2 and truth.voids == [[3], [0], [0, 3]]
    rows = {as_round(renamed(truth, m)).features(0).tobytes() for m in suit_maps(None)}
    assert len(rows) == 1


def test_features_seats_rotated_are_identical() -> None:
    rng = random.Random(6)
    for truth in positions(6, 500):
        n, turn = truth.players, rng.randrange(1, truth.players)
        hands = oracle.dealt(truth)
        twin = oracle.Position([hands[(s - turn) % n] for s in range(n)], truth.trump, (truth.dealer + turn) % n)
        for action in oracle.history(truth):
            twin.apply(action)
        a, b = as_round(truth), as_round(twin)
        assert b.seat == (a.seat + turn) % n
        for ego in range(n):
            assert np.array_equal(a.features(ego), b.features((ego + turn) % n))
        assert np.array_equal(a.mask(), b.mask())


def test_features_two_hands_of_one_public_position_differ() -> None:
    a = round_of("SA SK | H2 H3 | C4 C5", "S", 2)
    b = round_of("S2 S3 | H2 H3 | C4 C5", "S", 2)
    assert not np.array_equal(a.features(0), b.features(0))
    assert np.array_equal(a.features(1), b.features(1))


def test_mask_is_the_legal_actions_in_canonical_suits() -> None:
    for truth in positions(7, 800):
        r = as_round(truth)
        mask = r.mask()
        assert mask.dtype == np.bool_ and mask.shape == (52,)
        legal = r.legal_actions()
        assert sorted(r.action_from_canonical(int(i)) for i in np.flatnonzero(mask)) == legal
        assert all(r.action_from_canonical(r.action_to_canonical(a)) == a for a in legal)
        assert mask.sum() == len(legal)
        if truth.phase == "bidding":
            assert list(np.flatnonzero(mask)) == legal, "bids have no suit"
        else:
            assert all(r.action_to_canonical(a) % 13 == a % 13 for a in legal)
            assert {int(i) for i in np.flatnonzero(mask)} <= set(decode(r.features()).own)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_features_of_a_determinization_are_those_of_the_truth(seed: int) -> None:
    rng = random.Random(seed)
    players = rng.randint(3, 8)
    truth = random_position(rng, players, rng.randint(1, 52 // players))
    r = as_round(truth)
    for draw in range(4):
        d = r.determinize(draw)
        assert np.array_equal(d.features(), r.features())
        assert np.array_equal(d.mask(), r.mask())


def test_features_in_a_game_show_totals_share_and_the_next_round() -> None:
    game = shmzero.Game(players=4, cards=3, seed=2)
    rng = random.Random(10)
    while not game.done:
        r, index, totals = game.round, game.round_index, game.totals
        while r.phase != "done":
            for ego in range(4):
                view = decode(r.features(ego))
                assert view.total_differences == [totals[(ego + i) % 4] - totals[ego] for i in range(4)]
                assert view.share_played == pytest.approx(index / game.num_rounds, abs=1e-3)
                assert view.next_cards == ([3, 2, 1, 1, 1, 1, 2, 3, 0])[index + 1]
                assert np.array_equal(encode(view), r.features(ego)) or index
            r.apply(rng.choice(r.legal_actions()))
        game.next_round()
    assert len(set(game.totals)) > 1


def test_features_seat_defaults_to_the_one_to_act() -> None:
    r = round_of("SA SK | H2 H3 | C4 C5", "S", 2, "1")
    assert r.seat == 1 and np.array_equal(r.features(), r.features(1))
    assert not np.array_equal(r.features(), r.features(0))


def test_fixed_suits_are_features_of_another_version() -> None:
    """SHMZERO_SUITS=fixed: trump first, the others as they are; no other checkpoint fits."""
    code = (
        "from shmzero import _core, Round\n"
        "orders = {tuple(Round.deal(trump=2, seed=seed).suit_order()) for seed in range(20)}\n"
        "print(orders, _core.FEATURE_VERSION)"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | more, capture_output=True, text=True, check=True
        ).stdout
        for more in ({"SHMZERO_SUITS": "fixed"}, {})
    ]
    assert found[0] == f"{{(2, 0, 1, 3)}} {_core.FEATURE_VERSION + 1000}\n"
    assert found[1].count("(") > 3 and found[1].endswith(f" {_core.FEATURE_VERSION}\n")
