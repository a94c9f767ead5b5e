#!/usr/bin/env python3
"""What an agent does where the right answer is known: python tools/exact_play.py RUN_OR_CHECKPOINT.

Rounds of one card: all hands, seats and bids so far, against the exact best response to the agent's own
bids in the other seats. And hands that hold ace, king and queen of trumps of five cards.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import shmzero
    from shmzero import _core
    from shmzero.cli.command import run_command
    from shmzero.errors import ConfigError
    from shmzero.game.notation import card_name
    from tools.benchmarks.machine import machine
    from tools.benchmarks.measure import Result
    from tools.benchmarks.options import ToolParser, output_flags, put_out
except ImportError as error:
    sys.exit(f"error: {error}; start it as: env/run python tools/exact_play.py")

CARDS = _core.NUM_CARDS
BidOne = Callable[[list[shmzero.Round]], NDArray[np.float64]]
"""Probabilities of a bid of 1 by the seat to bid, [R] for R rounds of one card."""

RANKS = "23456789TJQKA"
RIGHT_FROM = {3: 0, 4: 2, 5: 4, 6: 6}
"""Lowest rank (0 the deuce) of trumps with which a first bidder does right to bid 1, by players."""


def bids_of(evaluator: Any) -> BidOne:
    """The bids of a policy network behind `evaluate_many`."""

    def bid_one(rounds: list[shmzero.Round]) -> NDArray[np.float64]:
        states = np.stack([r.features() for r in rounds])
        masks = np.stack([r.mask() for r in rounds])
        policies, _ = evaluator.evaluate_many(states, masks)
        chances = np.asarray(policies, np.float64)[:, :2]
        return np.asarray(chances[:, 1] / chances.sum(axis=1))

    return bid_one


@dataclass(frozen=True)
class Worst:
    """One decision of a round of one card."""

    loss: float
    turn: int
    card: int
    bids: tuple[int, ...]
    """Of those who bid before."""
    reach: float
    """How likely it is."""

    def words(self) -> str:
        said = " ".join(map(str, self.bids)) or "nothing"
        return f"{card_name(self.card)}, bidder {self.turn + 1}, after {said}; 1 in {1 / self.reach:,.0f}"


def _lowest(yes: NDArray[np.bool_], trump: int) -> int | None:
    """The lowest rank of trumps from which on all say yes [52]."""
    ranks = [rank for rank in range(13) if all(yes[trump * 13 + r] for r in range(rank, 13))]
    return min(ranks, default=None)


@dataclass(frozen=True)
class OneCard:
    """Of one number of players and trump: arrays by the seat to bid, whose place in the list is its turn.

    Each array is [2^turn bids so far (the first bid is the highest bit), 52 cards]. Where the rules leave
    one bid only, `value` holds it alone and -inf for the other.
    """

    value: list[NDArray[np.float64]]
    """[2, 2^turn, 52] points that the seat expects of a bid of 0 and of 1, the others being as they are."""
    chosen: list[NDArray[np.float64]]
    """Points that it expects of its own mixture of bids."""
    reach: list[NDArray[np.float64]]
    """Probability of seeing those bids and that card in that seat; 1 in sum for each seat."""
    chance: list[NDArray[np.float64]]
    """Probability of a bid of 1."""

    def losses(self) -> list[NDArray[np.float64]]:
        """Points that are given away, never below 0."""
        return [value.max(axis=0) - chosen for value, chosen in zip(self.value, self.chosen, strict=True)]

    def mean_loss(self) -> float:
        """Over seats, cards and bids, as often as they come."""
        return float(np.mean([(loss * reach).sum() for loss, reach in zip(self.losses(), self.reach, strict=True)]))

    def worst_hand(self) -> float:
        """The largest mean loss of a card in a seat, over the bids that it comes with."""
        means = [(loss * reach).sum(axis=0) / reach.sum(axis=0)
                 for loss, reach in zip(self.losses(), self.reach, strict=True)]  # fmt: skip
        return float(np.max(means))

    def worst(self) -> Worst:
        """The decision that gives most away, of all cards, seats and bids so far that can come."""
        reached = [np.where(reach > 0, loss, 0.0) for loss, reach in zip(self.losses(), self.reach, strict=True)]
        turn = int(np.argmax([loss.max() for loss in reached]))
        prefix, card = (int(i) for i in np.unravel_index(reached[turn].argmax(), reached[turn].shape))
        bids = tuple(prefix >> (turn - 1 - i) & 1 for i in range(turn))
        return Worst(float(reached[turn][prefix, card]), turn, card, bids, float(self.reach[turn][prefix, card]))

    def best_bids_one_from(self, trump: int) -> int | None:
        """The lowest rank of trumps with which a first bidder does better to bid 1, then and with all above."""
        return _lowest(self.value[0][1, 0] > self.value[0][0, 0], trump)

    def bids_one_from(self, trump: int) -> int | None:
        """The lowest rank of trumps with which the first bidder itself bids 1 rather than 0, and with all above."""
        return _lowest(self.chance[0][0] > 0.5, trump)


def one_card(bid_one: BidOne, players: int, trump: int | None) -> OneCard:
    """Everything about rounds of one card in which every seat bids by `bid_one`."""
    chance = [_chances(bid_one, players, trump, turn) for turn in range(players)]
    sequences = np.array(list(itertools.product((0, 1), repeat=players)))  # [2^players, players]
    prefix = [sequences[:, :turn] @ (1 << np.arange(turn)[::-1]) for turn in range(players)]
    weights = [np.where(sequences[:, [turn]] == 1, chance[turn][prefix[turn]], 1 - chance[turn][prefix[turn]])
               for turn in range(players)]  # fmt: skip
    beats, below_in_suit = _orders(trump)
    value, chosen, reach = [], [], []
    for seat in range(players):
        others = [turn for turn in range(players) if turn != seat]
        everything = ~np.eye(CARDS, dtype=bool)  # [my card, another's]
        losing = everything & ~beats
        # Not led by me: my card wins as a trump, or of the suit led.
        is_trump = np.arange(CARDS) // 13 == trump if trump is not None else np.zeros(CARDS, bool)
        leads = np.where(is_trump[:, None], losing, below_in_suit)
        total = _deals([weights[turn] for turn in others], [everything] * len(others))
        wins = _deals([weights[turn] for turn in others], [leads if turn == 0 else losing for turn in others])
        bids = sequences[:, seat]
        points = np.where(bids[:, None] == 1, 11.0 * wins, 10.0 * (total - wins))
        shape = (2**seat, 2, -1, CARDS)  # bids so far, mine, those after me
        all_of = total.reshape(shape).sum(axis=2)
        mine = np.moveaxis(points.reshape(shape).sum(axis=2), 1, 0) / np.moveaxis(np.maximum(all_of, 1e-300), 1, 0)
        mixture = np.stack([1 - chance[seat], chance[seat]])
        legal = np.ones((2, 2**seat), bool)
        if seat == players - 1:
            sums = np.array([bin(p).count("1") for p in range(2**seat)])
            legal = np.stack([sums != 1, sums != 0])  # the bids may not add up to the one card
        value.append(np.where(legal[:, :, None], mine, -np.inf))
        chosen.append(np.where(mixture > 0, mixture * mine, 0.0).sum(axis=0))
        weight = all_of.max(axis=1)  # before my own bid, which no other seat's earlier bid depends on
        reach.append(weight / weight.sum())
    return OneCard(value, chosen, reach, chance)


def _chances(bid_one: BidOne, players: int, trump: int | None, turn: int) -> NDArray[np.float64]:
    """[2^turn, 52] probability of a bid of 1, by the bids so far and the card."""
    rounds = []
    for bids in itertools.product((0, 1), repeat=turn):
        for card in range(CARDS):
            rest = (c for c in range(CARDS) if c != card)
            hands = [[card] if seat == turn else [next(rest)] for seat in range(players)]
            r = shmzero.Round.from_hands(hands, trump=trump, dealer=players - 1)
            for bid in bids:
                r.apply(bid)
            rounds.append(r)
    asked = bid_one(rounds)
    legal = [r.legal_actions() for r in rounds]
    asked = np.array([c if len(a) == 2 else float(a[0]) for c, a in zip(asked, legal, strict=True)])
    return asked.reshape(2**turn, CARDS)


def _orders(trump: int | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[my card, another's]: whether the other beats mine where mine is led or a trump; is of its suit and lower."""
    suit, rank = np.divmod(np.arange(CARDS), 13)
    same, higher = suit[:, None] == suit, rank[:, None] < rank
    trumps = (suit == trump) if trump is not None else np.zeros(CARDS, bool)
    return (same & higher) | (trumps & ~trumps[:, None]), same & ~higher & ~np.eye(CARDS, dtype=bool)


def _deals(weights: list[NDArray[np.float64]], allowed: list[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """[S, my card]: sum over distinct cards of the other seats of the products of their weights.

    weights[j] [S, 52] for S sequences of bids, allowed[j] [my card, 52]. Cards are given out one after the
    other, each to one of the seats that have none, or to nobody.
    """
    sequences = len(weights[0])
    everyone = (1 << len(weights)) - 1
    sums = {0: np.ones((sequences, CARDS))}
    for card in range(CARDS):
        shares = [w[:, [card]] * a[:, card] for w, a in zip(weights, allowed, strict=True)]
        for served in range(everyone, 0, -1):  # from full to empty: each card once
            gained = [sums[served ^ 1 << j] * shares[j] for j in range(len(weights))
                      if served >> j & 1 and served ^ 1 << j in sums]  # fmt: skip
            if gained:
                sums[served] = sums.get(served, 0.0) + np.sum(gained, axis=0)
    return sums[everyone]


def strong_trumps(num: int, players: int = 4, seed: int = 1) -> Iterator[shmzero.Round]:
    """Rounds of five cards whose next bidder holds ace, king and queen of trumps, after random legal bids."""
    rng = random.Random(seed)
    for _ in range(num):
        trump, turn = rng.randrange(4), rng.randrange(players)
        top = [trump * 13 + rank for rank in (12, 11, 10)]
        rest = [card for card in range(CARDS) if card not in top]
        rng.shuffle(rest)
        hands = [[rest.pop() for _ in range(2 if seat == turn else 5)] for seat in range(players)]
        hands[turn] += top
        r = shmzero.Round.from_hands(hands, trump=trump, dealer=players - 1)
        for _ in range(turn):
            r.apply(rng.choice(r.legal_actions()))
        if {0, 2} <= set(r.legal_actions()):
            yield r


def prefers_two(evaluator: Any, rounds: list[shmzero.Round]) -> float:
    """Share of rounds in which a policy gives a bid of 2 more than a bid of 0."""
    states, masks = np.stack([r.features() for r in rounds]), np.stack([r.mask() for r in rounds])
    policies = np.asarray(evaluator.evaluate_many(states, masks)[0])
    return float((policies[:, 2] > policies[:, 0]).mean())


def _rank(rank: int | None) -> str:
    return "no trump" if rank is None else RANKS[rank]


def measure(evaluator: Any) -> list[Result]:
    """All of it, for a policy network behind `evaluate_many`."""
    results = []
    bid_one = bids_of(evaluator)
    for players in (3, 4, 5, 6):
        for trump in (0, None):
            found = one_card(bid_one, players, trump)
            name = f"one card, {players} players, {'trumps' if trump is not None else 'no trumps'}"
            results.append(Result(f"{name}: mean loss", found.mean_loss(), "points", "<= 0.03"))
            results.append(Result(f"{name}: worst hand", found.worst_hand(), "points", "<= 0.2"))
            worst = found.worst()
            results.append(Result(f"{name}: worst decision", worst.loss, "points"))
            results.append(Result(f"{name}: which that is", worst.words()))
            if trump is not None:
                right = RANKS[RIGHT_FROM[players]]
                for who, rank in (("the agent", found.bids_one_from(trump)),
                                  ("the best response to it", found.best_bids_one_from(trump))):  # fmt: skip
                    results.append(Result(f"{name}: first, {who} bids 1 from", _rank(rank), "", right))
    for players in (3, 4, 5, 6):
        share = prefers_two(evaluator, list(strong_trumps(400, players)))
        name = f"ace, king, queen of trumps of five cards, {players} players: bid 2 above bid 0"
        results.append(Result(name, share, "", "1"))
    return results


def main() -> int:
    return run_command(_main)


def _main() -> int:
    parser = ToolParser(prog="tools/exact_play.py", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("agent", type=Path, help="a training run's folder, or a checkpoint")
    output_flags(parser)
    given = parser.parse_args()
    described = machine()
    from shmzero.files import is_folder
    from shmzero.nets.checkpoint import load_checkpoint
    from shmzero.nets.evaluator import NetEvaluator
    from shmzero.runs.checkpoints import newest_checkpoint

    path = newest_checkpoint(given.agent) if is_folder(given.agent) else given.agent
    if path is None:
        raise ConfigError(f"{given.agent} has no checkpoint; allowed: a training run's folder, or a checkpoint")
    results = measure(NetEvaluator(load_checkpoint(path)))
    put_out("exact_play", given, described, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
