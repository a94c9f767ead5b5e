"""Positions for tests: core rounds out of text and oracle positions, and random positions of a wanted kind."""

from __future__ import annotations

import random

import shmzero
from tests.support import oracle


def as_round(truth: oracle.Position) -> shmzero.Round:
    """The core's round for an oracle position: the same deal with the same actions applied."""
    r = shmzero.Round.from_hands(oracle.dealt(truth), trump=truth.trump, dealer=truth.dealer)
    for action in oracle.history(truth):
        r.apply(action)
    return r


def round_of(text: str, trump: str | None, dealer: int, moves: str = "") -> shmzero.Round:
    """A round from a deal and the actions made in it, both as text (see oracle.py)."""
    return as_round(oracle.position(text, trump, dealer, moves))


def random_position(
    rng: random.Random, players: int, cards_each: int, num_actions: int | None = None
) -> oracle.Position:
    """A position with a seat to act, reached by random legal actions: so many, or anywhere in the round."""
    truth = oracle.Position(
        oracle.random_deal(rng, players, cards_each), rng.choice([0, 1, 2, 3, None]), rng.randrange(players)
    )
    oracle.play_randomly(truth, rng, rng.randrange(players * (cards_each + 1)) if num_actions is None else num_actions)
    return truth


def late_position(
    players: int,
    cards_each: int,
    held: int,
    in_trick: int,
    num_void: int,
    seed: int,
    most_deals: int | None = None,
    void_now: bool = False,
) -> oracle.Position:
    """The first position of a seeded stream in which the seat to act holds `held` cards, `in_trick` cards lie on the table
    (-1: nobody has bid), at least `num_void` seats have shown a void and at most `most_deals` deals are consistent.

    `void_now` asks for a void that only the current trick shows.
    """
    rng = random.Random(seed)
    for _ in range(20_000):
        num_actions = players * (1 + cards_each - held) + in_trick if in_trick >= 0 else 0
        truth = random_position(rng, players, cards_each, num_actions)
        if sum(bool(suits) for suits in truth.voids) < num_void:
            continue
        if void_now:
            before = truth.copy()
            before.trick = []
            if before.voids == truth.voids:
                continue
        if most_deals is not None and sum(1 for _ in _at_most(truth, most_deals)) > most_deals:
            continue
        if most_deals is not None and sum(1 for _ in _at_most(truth, 4)) < 4:
            continue
        return truth
    raise LookupError(f"no position of {players} players, {cards_each} cards, {held} held, {num_void} voids found")


def _at_most(truth: oracle.Position, limit: int):  # type: ignore[no-untyped-def]
    for count, hands in enumerate(oracle.consistent_deals(truth, truth.seat)):
        if count > limit + 1:
            return
        yield hands
