"""The built-in bots by name, and who else may hold seats."""

from __future__ import annotations

import re

from shmzero import _core
from shmzero.errors import ConfigError
from shmzero.settings import check_number

BUILT_IN = "random, threshold, mc90, mc900, uct10x90, uct10x90+solver (any numbers)"
"""Bots, in words."""
SOLVED_CARDS = 12
"""Most cards in all hands with which `+solver` solves a leaf: three tricks of four players."""
OLDER = "older"
"""In the `opponent_pool` of a training run: one of its own earlier checkpoints."""


def built_in_bot(name: str) -> _core.BotConfig | None:
    """The bot of a name: random; threshold; mcN, flat Monte-Carlo with N playouts; uctDxS, D worlds of S
    simulations, and uctDxS+solver. None for any other. Raises ConfigError for sizes beyond all sense."""
    kinds = _core.BotKind
    if name in ("random", "threshold"):
        return _core.BotConfig(getattr(kinds, name))
    if found := re.fullmatch(r"mc(\d{1,9})", name):
        playouts = int(found[1])
        check_number(f"playouts of {name}", playouts, 1, 10**8)
        return _core.BotConfig(kinds.monte_carlo, playouts=playouts)
    if found := re.fullmatch(r"uct(\d{1,9})x(\d{1,9})(\+solver)?", name):
        worlds, simulations = int(found[1]), int(found[2])
        check_number(f"worlds of {name}", worlds, 1, 10_000)
        check_number(f"simulations of {name}", simulations, 1, 10**6)
        solved = SOLVED_CARDS if found[3] else 0
        return _core.BotConfig(kinds.uct, worlds=worlds, simulations=simulations, solved_cards=solved)
    return None


def other_agents(text: str) -> list[tuple[str, _core.BotConfig | None, float]]:
    """(name, bot or None for a network, share) of each part of `others`. Raises ConfigError."""
    found: list[tuple[str, _core.BotConfig | None, float]] = []
    for part in filter(None, text.split(",")):
        name, _, share = part.rpartition(":")
        try:
            chance = float(share) if name else -1.0
        except ValueError:
            chance = -1.0
        if not 0 < chance <= 1:
            raise ConfigError(
                f"opponent_pool has {part!r}; allowed: NAME:SHARE with shares in 0..1, such as threshold:0.2"
            )
        found.append((name, built_in_bot(name), chance))
    if sum(share for _, _, share in found) > 1:
        raise ConfigError(f"opponent_pool is {text!r}, more than all seats; allowed: shares of at most 1 together")
    networks = [name for name, bot, _ in found if bot is None]
    if len(networks) > 1:
        raise ConfigError(
            f"opponent_pool names the networks {', '.join(networks)}; allowed: one, and any bots ({BUILT_IN})"
        )
    return found
