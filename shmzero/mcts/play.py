"""Rounds of self-play in this process, and what the core needs to know to play them."""

from __future__ import annotations

from operator import index
from typing import SupportsIndex

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.game.bots import other_agents
from shmzero.game.deals import check_games, trump_weights, weighted
from shmzero.mcts.config import SearchConfig
from shmzero.mcts.search import Evaluator, drive
from shmzero.settings import check_number, plain


def play_settings(
    search: SearchConfig,
    seed: int = 0,
    players: str = "4",
    cards: str = "5",
    trump: str = "random",
    dealer: str = "random",
    games: bool = False,
    rules: _core.Rules | None = None,
    others: str = "",
) -> _core.PlaySettings:
    """What self-play plays, as the core takes it. Raises ConfigError for deals and games that cannot be."""
    check_number("seed", seed, 0, 2**64 - 1)
    if search.known_hands:
        raise ConfigError("known_hands is set; self-play never looks at hidden hands")
    core = _core.PlaySettings()
    core.seed = seed
    core.search = search.to_core()
    core.players = weighted("players", players, _core.MIN_PLAYERS, _core.MAX_PLAYERS)
    core.cards = weighted("cards", cards, 1, _core.NUM_CARDS // _core.MIN_PLAYERS)
    core.trumps = trump_weights(trump)
    smallest = min(size for size, _ in core.cards)
    for number, _ in core.players:
        if smallest * number > _core.NUM_CARDS:
            raise ConfigError(
                f"cards is {cards!r} with {number} players; the deck allows at most "
                f"{_core.NUM_CARDS // number} cards each"
            )
    fewest = min(number for number, _ in core.players)
    dealer = str(plain(dealer))
    if dealer == "random":
        core.dealer = -1
    elif dealer.isdecimal() and int(dealer) < fewest:
        core.dealer = int(dealer)
    else:
        raise ConfigError(f"dealer is {dealer!r}; allowed: random, or a seat 0..{fewest - 1}")
    core.games = games
    core.others = [(bot, share) for _, bot, share in other_agents(others)]
    if rules is not None:
        core.rules = rules
    if games:
        check_games(core)
    return core


def play_rounds(
    evaluator: Evaluator,
    n: SupportsIndex,
    config: SearchConfig | None = None,
    *,
    seed: SupportsIndex = 0,
    lanes: SupportsIndex = 64,
    players: str = "4",
    cards: str = "5",
    trump: str = "random",
    dealer: str = "random",
    games: bool = False,
    rules: _core.Rules | None = None,
) -> list[bytes]:
    """Play rounds 0..n-1 (with `games`: games) against itself and return their records, by id.

    The same engine and the same rounds as `python -m shmzero.selfplay` with these settings.
    `_core.decode_record` and `_core.replay` read records. Raises ConfigError for impossible settings and,
    as `search` does, ValueError and RuntimeError for what the evaluator answers.
    """
    settings = play_settings(config or SearchConfig(), index(seed), players, cards, trump, dealer, games, rules)
    run = _core.PlayRun(settings, list(range(index(n))), lanes)
    for _ in drive(run, evaluator):
        pass
    return [record for _, records in sorted(run.finished()) for record in records]
