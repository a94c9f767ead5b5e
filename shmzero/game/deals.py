"""What is dealt, in words: numbers of players and cards, trumps, with weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.settings import Settings, plain, setting

SUITS = ("spades", "hearts", "clubs", "diamonds", "none")
"""Names of the trumps, by the core's index; the last is a round without trumps."""


@dataclass(frozen=True)
class DealRules(Settings):
    """What is dealt, whoever deals it."""

    title: ClassVar[str] = "deals"

    players: str = setting("4", usual=True)
    """Number of players: 4, 3-6, or with weights 4:15,5:70,6:15."""
    cards: str = setting("5", usual=True)
    """Cards dealt to each, written likewise; in whole games the largest hand."""
    trump: str = "random"
    """random, spades, hearts, clubs, diamonds, none, or several with commas and weights, as spades:3,none:1."""


@dataclass(frozen=True)
class Deals(DealRules):
    """What is dealt in self-play."""

    dealer: str = "random"
    """random, or a seat."""


def weighted(name: str, text: str, low: int, high: int) -> list[tuple[int, float]]:
    """Whole numbers with weights out of "4", "3-6", "4,5" or "4:15,5:70,6:15"."""
    problem = ConfigError(
        f"{name} is {text!r}; allowed: a number {low}..{high}, a range as 3-6, or weights as 4:15,5:70"
    )
    pairs: list[tuple[int, float]] = []
    for part in str(plain(text)).split(","):
        value, _, weight = part.partition(":")
        first, dash, last = value.partition("-")
        try:
            numbers = range(int(first), int(last if dash else first) + 1)
            share = float(weight) if weight else 1.0
        except ValueError:
            raise problem from None
        if not numbers or numbers[0] < low or numbers[-1] > high:
            raise problem
        if not (math.isfinite(share) and share > 0):
            raise problem
        pairs += [(number, share / len(numbers)) for number in numbers]
    return pairs


def trump_weights(text: str) -> list[tuple[int, float]]:
    """Trumps with weights out of "random", a suit's name, "none", or several of these."""
    if text == "random":
        return [(suit, 1.0) for suit in range(len(SUITS))]
    problem = ConfigError(
        f"trump is {text!r}; allowed: random, or one or more of {', '.join(SUITS)}, with weights as spades:3,none:1"
    )
    pairs = []
    for part in text.split(","):
        name, _, weight = part.partition(":")
        try:
            share = float(weight) if weight else 1.0
        except ValueError:
            raise problem from None
        if name not in SUITS or not (math.isfinite(share) and share > 0):
            raise problem
        pairs.append((SUITS.index(name), share))
    return pairs


def check_games(play: _core.PlaySettings) -> None:
    """Raises ConfigError where a game that may be drawn has too many rounds, or more cards than the deck."""
    for number, _ in play.players:
        most = _core.NUM_CARDS // number
        for cards in {cards for cards, _ in play.cards if cards <= most}:
            sizes = play.rules.hand_sizes(number, cards)
            if len(sizes) > _core.MAX_ROUNDS_PER_GAME:
                raise ConfigError(
                    f"a game of these rules has {len(sizes)} rounds; allowed: {_core.MAX_ROUNDS_PER_GAME}"
                )
            if max(sizes) > most:
                raise ConfigError(
                    f"the sequence of hand sizes has {max(sizes)} with {number} players; "
                    f"the deck allows at most {most} cards each"
                )


DEALS: dict[str, dict[str, Any]] = {
    "plan": {"players": "4:15,5:70,6:15", "cards": "1-8"},
    "broad": {"players": "3-8", "cards": "1:840,2:420,3:280,4:210,5:168,6:140,7:120,8:105"},
}
"""Distributions of deals by name. Hands are no larger than the deck allows. `broad` has the fewer rounds of a hand
size the more decisions they take: each size has about the same share of them."""
DEALS_FROM = "sets players and cards: " + "; ".join(
    f"{name} {deals['players']} players, {deals['cards']} cards" for name, deals in DEALS.items()
)
"""The help of a flag that takes one of these names."""
