"""The rules of Blob once more, slowly, in plain Python: what the tests hold the C++ core against.

Written from the rules alone and shares no code with the core. Not responsible for features (see test_features.py)
or for search; it does hold the exact solvers that search is compared with. Read `Position` first.

Deals are text: a card is its suit and rank ("SA" ace of spades, "HT" ten of hearts), a seat's cards stand together, seats are
divided by "|": "SA SK HT | S2 S3 S4 | C2 C3 C4". Actions are text too: "1 0 2 | SA S2 C2" is three bids, then three cards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations

SUITS = "SHCD"
RANKS = "23456789TJQKA"
NO_TRUMP = None


def card(text: str) -> int:
    """Index of a card given as suit and rank, e.g. "HT"."""
    if len(text) != 2 or text[0] not in SUITS or text[1] not in RANKS:
        raise ValueError(f"{text!r} is no card; a card is one of {SUITS} and one of {RANKS}, e.g. HT")
    return SUITS.index(text[0]) * 13 + RANKS.index(text[1])


def cards(text: str) -> list[int]:
    """Indices of cards divided by blanks."""
    return [card(word) for word in text.split()]


def deal(text: str) -> list[list[int]]:
    """Hands of a deal written as "SA SK | H2 H3 | ..."."""
    return [cards(part) for part in text.split("|")]


def card_text(index: int) -> str:
    return SUITS[index // 13] + RANKS[index % 13]


def cards_text(indices: Sequence[int]) -> str:
    return " ".join(card_text(index) for index in indices)


def deal_text(hands: Sequence[Sequence[int]]) -> str:
    return " | ".join(cards_text(hand) for hand in hands)


def suit(text: str | None) -> int | None:
    """Trump written as one letter; None or "-" is no trump."""
    return None if text in (None, "-") else SUITS.index(text)


def actions(text: str) -> list[int]:
    """Bids as numbers, then cards; the "|" between them is for the eye."""
    return [int(word) if word.isdigit() else card(word) for word in text.replace("|", " ").split()]


def beats(challenger: int, holder: int, trump: int | None) -> bool:
    """Whether `challenger`, played after `holder`, takes the trick from it."""
    if challenger // 13 == holder // 13:
        return challenger % 13 > holder % 13
    return challenger // 13 == trump


@dataclass
class Position:
    """One round, full truth: who holds what, what was bid, what was played. Nothing is cached but `voids`."""

    hands: list[list[int]]
    trump: int | None
    dealer: int
    hook_from: int | None = 1  # the hook applies in rounds of at least so many cards; None is never
    cards: int = 0
    bids: list[int | None] = field(default_factory=list)
    tricks: list[list[tuple[int, int]]] = field(default_factory=list)  # finished tricks, (seat, card)
    trick: list[tuple[int, int]] = field(default_factory=list)
    tricks_won: list[int] = field(default_factory=list)
    leader: int = -1

    def __post_init__(self) -> None:
        self.hands = [sorted(hand) for hand in self.hands]
        self.cards = self.cards or len(self.hands[0])
        self.bids = self.bids or [None] * self.players
        self.tricks_won = self.tricks_won or [0] * self.players
        if self.leader < 0:
            self.leader = (self.dealer + 1) % self.players

    @property
    def players(self) -> int:
        return len(self.hands)

    @property
    def phase(self) -> str:
        if any(bid is None for bid in self.bids):
            return "bidding"
        return "playing" if len(self.tricks) < self.cards else "done"

    @property
    def seat(self) -> int:
        """The seat to act; not to be asked when done."""
        if self.phase == "bidding":
            made = sum(bid is not None for bid in self.bids)
            return (self.dealer + 1 + made) % self.players
        return (self.leader + len(self.trick)) % self.players

    @property
    def played(self) -> list[int]:
        """Cards in the order in which they were played, the current trick included."""
        return [c for trick in [*self.tricks, self.trick] for _, c in trick]

    @property
    def voids(self) -> list[list[int]]:
        """Suits that each seat has shown to lack by not following, the current trick included."""
        shown: list[set[int]] = [set() for _ in range(self.players)]
        for trick in [*self.tricks, self.trick]:
            for seat, c in trick[1:]:
                if c // 13 != trick[0][1] // 13:
                    shown[seat].add(trick[0][1] // 13)
        return [sorted(suits) for suits in shown]

    @property
    def hook_applies(self) -> bool:
        return self.hook_from is not None and self.cards >= self.hook_from

    def winning(self) -> tuple[int, int]:
        """(seat, card) that holds the current, non-empty trick."""
        best = self.trick[0]
        for entry in self.trick[1:]:
            if beats(entry[1], best[1], self.trump):
                best = entry
        return best

    def legal(self) -> list[int]:
        if self.phase == "done":
            return []
        if self.phase == "bidding":
            bids = list(range(self.cards + 1))
            made = [bid for bid in self.bids if bid is not None]
            if self.seat == self.dealer and self.hook_applies:
                bids = [bid for bid in bids if sum(made) + bid != self.cards]
            return bids
        hand = self.hands[self.seat]
        if self.trick:
            following = [c for c in hand if c // 13 == self.trick[0][1] // 13]
            if following:
                return following
        return list(hand)

    def apply(self, action: int) -> None:
        if action not in self.legal():
            raise ValueError(f"{action} is not among {self.legal()}")
        seat = self.seat
        if self.phase == "bidding":
            self.bids[seat] = action
            return
        self.hands[seat].remove(action)
        self.trick.append((seat, action))
        if len(self.trick) == self.players:
            winner = self.winning()[0]
            self.tricks_won[winner] += 1
            self.leader = winner
            self.tricks.append(self.trick)
            self.trick = []

    def scores(self) -> list[int]:
        return [10 + won if won == bid else 0 for won, bid in zip(self.tricks_won, self.bids, strict=True)]

    def utilities(self, rivalry: float = 0.0) -> list[float]:
        scores = self.scores()
        others = self.players - 1
        return [(mine - rivalry * (sum(scores) - mine) / others) / (10 + self.cards) for mine in scores]

    def copy(self) -> Position:
        return Position(
            [list(hand) for hand in self.hands],
            self.trump,
            self.dealer,
            self.hook_from,
            self.cards,
            list(self.bids),
            [list(trick) for trick in self.tricks],
            list(self.trick),
            list(self.tricks_won),
            self.leader,
        )

    def unseen(self, ego: int) -> list[int]:
        """Cards whose place `ego` does not know: in another hand or undealt."""
        known = {*self.hands[ego], *self.played}
        return [c for c in range(52) if c not in known]


def position(text: str, trump: str | None, dealer: int, moves: str = "") -> Position:
    """A position from a deal and the actions made in it, all as text."""
    result = Position(deal(text), suit(trump), dealer)
    for action in actions(moves):
        result.apply(action)
    return result


def random_deal(rng: random.Random, players: int, cards_each: int) -> list[list[int]]:
    deck = rng.sample(range(52), players * cards_each)
    return [sorted(deck[seat * cards_each : (seat + 1) * cards_each]) for seat in range(players)]


def random_settings(rng: random.Random) -> tuple[int, int, int | None, int]:
    """(players, cards, trump, dealer), each player count alike and each hand size that it allows alike."""
    players = rng.randint(3, 8)
    return players, rng.randint(1, 52 // players), rng.choice([0, 1, 2, 3, None]), rng.randrange(players)


def consistent_deals(truth: Position, ego: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every deal of the unseen cards that `ego` cannot rule out, as the hands of all seats. Brute force, each once."""
    voids = truth.voids
    seats = [seat for seat in range(truth.players) if seat != ego]

    def fill(
        at: int, left: tuple[int, ...], hands: dict[int, tuple[int, ...]]
    ) -> Iterator[tuple[tuple[int, ...], ...]]:
        if at == len(seats):
            yield tuple(hands[seat] for seat in range(truth.players))
            return
        seat = seats[at]
        able = [c for c in left if c // 13 not in voids[seat]]
        for hand in combinations(able, len(truth.hands[seat])):
            rest = tuple(c for c in left if c not in hand)
            yield from fill(at + 1, rest, {**hands, seat: hand})

    yield from fill(0, tuple(truth.unseen(ego)), {ego: tuple(truth.hands[ego])})


def consistent(truth: Position, ego: int, hands: Sequence[Sequence[int]]) -> bool:
    """Whether `ego`, who sees what it sees in `truth`, can believe in these hands."""
    voids = truth.voids
    unseen = set(truth.unseen(ego))
    others = [c for seat, hand in enumerate(hands) if seat != ego for c in hand]
    return (
        sorted(hands[ego]) == truth.hands[ego]
        and [len(hand) for hand in hands] == [len(hand) for hand in truth.hands]
        and len(set(others)) == len(others)
        and unseen.issuperset(others)
        and all(c // 13 not in voids[seat] for seat, hand in enumerate(hands) if seat != ego for c in hand)
    )


class MaxnSolver:
    """Exact max^n of a deal with known hands: every seat maximises its own score, ties go to one fixed end.

    `last` prefers the last of several equally good actions, otherwise the first. Scores are whole numbers, so ties are exact.
    """

    def __init__(self, truth: Position, last: bool) -> None:
        self.players, self.cards, self.trump, self.dealer = truth.players, truth.cards, truth.trump, truth.dealer
        self.hook = truth.hook_applies
        self.better = (lambda new, old: new >= old) if last else (lambda new, old: new > old)
        self.solve = lru_cache(maxsize=None)(self._solve)

    def best_actions(self, truth: Position) -> tuple[int, dict[int, int]]:
        """(chosen action, score of the acting seat after each legal action)."""
        values = {}
        for action in truth.legal():
            after = truth.copy()
            after.apply(action)
            values[action] = self.solve(*_key(after))[truth.seat]
        choice = None
        for action, value in values.items():
            if choice is None or self.better(value, values[choice]):
                choice = action
        assert choice is not None
        return choice, values

    def _solve(
        self, hands: tuple[int, ...], bids: tuple[int, ...], won: tuple[int, ...], trick: tuple[int, ...], leader: int
    ) -> tuple[int, ...]:
        if self._over(hands, bids, trick):
            return self._scores(bids, won)
        seat, children = self._children(hands, bids, won, trick, leader)
        best = None
        for child in children:
            value = self.solve(*child)
            if best is None or self.better(value[seat], best[seat]):
                best = value
        assert best is not None
        return best

    def _over(self, hands: tuple[int, ...], bids: tuple[int, ...], trick: tuple[int, ...]) -> bool:
        return len(bids) == self.players and not any(hands) and not trick

    def _scores(self, bids: tuple[int, ...], won: tuple[int, ...]) -> tuple[int, ...]:
        made = [bids[(seat - self.dealer - 1) % self.players] for seat in range(self.players)]
        return tuple(10 + w if w == bid else 0 for w, bid in zip(won, made, strict=True))

    def _children(self, hands, bids, won, trick, leader):  # type: ignore[no-untyped-def]
        """(seat to act, the states that its legal actions lead to)."""
        if len(bids) < self.players:
            seat = (self.dealer + 1 + len(bids)) % self.players
            legal = list(range(self.cards + 1))
            if seat == self.dealer and self.hook:
                legal = [bid for bid in legal if sum(bids) + bid != self.cards]
            return seat, [(hands, (*bids, bid), won, trick, leader) for bid in legal]
        seat = (leader + len(trick)) % self.players
        hand = [c for c in range(52) if hands[seat] >> c & 1]
        if trick:
            hand = [c for c in hand if c // 13 == trick[0] // 13] or hand
        return seat, [self._played(hands, bids, won, trick, leader, seat, c) for c in hand]

    def _played(self, hands, bids, won, trick, leader, seat, c):  # type: ignore[no-untyped-def]
        hands = tuple(h & ~(1 << c) if s == seat else h for s, h in enumerate(hands))
        trick = (*trick, c)
        if len(trick) == self.players:
            best = 0
            for i in range(1, len(trick)):
                if beats(trick[i], trick[best], self.trump):
                    best = i
            leader = (leader + best) % self.players
            won = tuple(w + (s == leader) for s, w in enumerate(won))
            trick = ()
        return hands, bids, won, trick, leader


def _key(truth: Position) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
    order = [(truth.dealer + 1 + i) % truth.players for i in range(truth.players)]
    return (
        tuple(sum(1 << c for c in hand) for hand in truth.hands),
        tuple(truth.bids[s] for s in order if truth.bids[s] is not None),  # type: ignore[misc]
        tuple(truth.tricks_won),
        tuple(c for _, c in truth.trick),
        truth.leader,
    )


def history(truth: Position) -> list[int]:
    """The actions that led to a position, in order."""
    order = [(truth.dealer + 1 + i) % truth.players for i in range(truth.players)]
    return [bid for bid in (truth.bids[s] for s in order) if bid is not None] + truth.played


def dealt(truth: Position) -> list[list[int]]:
    """The hands as they were before the first card."""
    hands = [list(hand) for hand in truth.hands]
    for trick in [*truth.tricks, truth.trick]:
        for seat, c in trick:
            hands[seat].append(c)
    return [sorted(hand) for hand in hands]


def play_randomly(truth: Position, rng: random.Random, num_actions: int) -> None:
    for _ in range(num_actions):
        truth.apply(rng.choice(truth.legal()))
