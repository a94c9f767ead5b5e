"""`python -m shmzero.arena`: matches and ratings of agents, and `play_match` for programs.

The matches are matches/duplicate.py, who plays them matches/agents.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shmzero.cli.command import run_command
from shmzero.cli.flags import Parser, renamed_words, settings_parser, split_help
from shmzero.errors import ConfigError
from shmzero.files import is_folder
from shmzero.game.bots import BUILT_IN
from shmzero.game.deals import DEALS, DEALS_FROM
from shmzero.machine import check_cuda
from shmzero.matches.agents import make_agent
from shmzero.matches.config import ArenaConfig
from shmzero.matches.duplicate import Mode, play_match
from shmzero.matches.pool import rate
from shmzero.matches.tables import Output, bid_rows, match_rows
from shmzero.mcts.config import SearchConfig
from shmzero.runs.checkpoints import newest_checkpoint

__all__ = ["main", "parse", "play_match"]

EXAMPLES = """examples:
  python -m shmzero.arena mc90 threshold random        mc90 against the others
  python -m shmzero.arena runs/a/net.safetensors mc900 --deals 1000 --mode both
  python -m shmzero.arena net.safetensors:policy old.safetensors:3x30 --players 4:15,5:70,6:15 --cards 1-7
  python -m shmzero.arena threshold random --whole-games --cards 7 --deals 20
  python -m shmzero.arena --rating random threshold mc90 mc900 --deals 500 --out runs/ratings
  python -m shmzero.arena --exploit runs/a --minutes 3    how exploitable is it?"""
AGENT = (
    f"{BUILT_IN}, a checkpoint, or the folder of a training run. The last two may end in :policy, to play without a "
    "search, or in :3x30, to search 3 worlds with 30 simulations each (default). +halving, +maximise, +solver8 may "
    "follow a search."
)
"""The help of an agent."""


def parser(asked: ArenaConfig | None = None, everything: bool = True) -> Parser:
    """The command's parser; `asked`: settings whose help it shows."""
    found = settings_parser(
        "python -m shmzero.arena",
        "Plays matches of Blob: the first agent, the hero, against each of the others,\n"
        "the villains. --rating and --exploit do something else instead.",
        EXAMPLES,
        ArenaConfig,
        asked,
        asked.resolved().flat() if asked else None,
        everything,
    )
    found.usage = "python -m shmzero.arena AGENT AGENT... [options]"
    found.add_argument("agents", nargs="*", metavar="AGENT", help=AGENT)
    found.add_argument("--deals-from", choices=DEALS, help=DEALS_FROM)
    return found


def parse(arguments: list[str] | None) -> tuple[ArenaConfig, list[str]]:
    """(settings, agents) out of flags over --deals-from over defaults. Raises ConfigError."""
    words, help_wanted = split_help(sys.argv[1:] if arguments is None else arguments)
    flags = vars(parser().parse_args(renamed_words(words, ArenaConfig.old_names)))
    agents, deals = flags.pop("agents"), flags.pop("deals_from")
    found = ArenaConfig.of(**DEALS.get(deals, {}) | flags)
    if help_wanted:
        print(parser(found, help_wanted == "all").format_help(), end="")
        raise SystemExit(0)
    _check_together(found, agents, flags)
    check_cuda("device", found.device, [found.device])
    return found.resolved(), agents


def _check_together(config: ArenaConfig, agents: Sequence[str], given: Container[str]) -> None:
    """Raises ConfigError for agents and settings that do not go together; `given`: the settings that have a flag."""
    rating, exploit = config.pool.rating, config.fresh_seat.exploit
    if "mode" in given and (rating or exploit):
        raise ConfigError("--mode is set with --rating or --exploit; allowed: with matches of a hero")
    if exploit and (agents or rating or config.whole_games):
        raise ConfigError("--exploit is set with agents, --rating or --whole-games; allowed: it alone, on rounds")
    if "minutes" in given and not exploit:
        raise ConfigError("--minutes is set without --exploit; it is the time of its training")
    if not agents and not exploit:
        raise ConfigError("no agents; allowed: two or more, or --exploit CHECKPOINT")
    if len(agents) == 1:
        raise ConfigError(f"one agent, {agents[0]}, has nobody to play; allowed: two or more agents")


def _run(config: ArenaConfig, specs: Sequence[str]) -> dict[str, Any]:
    out = Output(config.json)
    if config.fresh_seat.exploit:
        return _exploit(config, _checkpoint(config.fresh_seat.exploit), out)
    agents = [make_agent(spec, config.device, config.threads) for spec in specs]
    what = {
        **asdict(config.dealt),
        "deals": config.deals,
        "games": config.whole_games,
        "seed": config.seed,
        "threads": config.threads,
    }
    if config.pool.rating:
        table = rate(agents, **what, show=out.progress("rating"))
        out.table(
            f"ratings, {table.anchor} = 0, 95 % intervals over {table.deals} deals",
            ["agent", "rating", "low", "high", "win share", "seats"],
            [[name, f"{r.rating:+.0f}", f"{r.low:+.0f}", f"{r.high:+.0f}", f"{r.win_share:.3f}", str(r.seats)]
             for name, r in table.agents.items()],
        )  # fmt: skip
        if config.pool.out:
            table.save(config.pool.out)
        return table.as_dict()
    hero, *villains = agents
    modes: tuple[Mode, ...] = ("one", "rest") if config.mode == "both" else (config.mode,)
    results = []
    for villain in villains:
        for mode in modes:
            show = out.progress(f"{hero.name} against {villain.name}, {mode}")
            results.append(play_match(hero, villain, mode=mode, show=show, **what))
    unit = "games" if config.whole_games else "rounds"
    out.table(
        f"{hero.name}: points per round above the others, 95 % interval over deals; win share of {unit}",
        ["against", "mode", "points", "low", "high", "win", "equal", "deals", "rounds", "s"],
        match_rows(results),
    )
    out.table(
        f"{hero.name}: exact bids",
        ["against", "mode", "cards", "hero", "villain", "ceiling"],
        bid_rows(results),
    )
    return {"matches": [result.as_dict() for result in results]}


def _checkpoint(path: Path) -> Path:
    """The file that --exploit names, or the newest checkpoint of a run's folder. Raises ConfigError."""
    found = (newest_checkpoint(path) or path) if is_folder(path) else path
    if not found.is_file():
        raise ConfigError(f"--exploit {found} is no checkpoint and no run with one")
    return found


def _exploit(config: ArenaConfig, checkpoint: Path, out: Output) -> dict[str, Any]:
    from shmzero.matches.exploit import learn_against
    from shmzero.nets.evaluator import NetEvaluator

    played = asdict(config.dealt) | {"seed": config.seed, "threads": config.threads}
    villain = make_agent(f"{checkpoint}:policy", config.device, config.threads)
    net = learn_against(checkpoint, minutes=config.fresh_seat.minutes, show=out.line, device=config.device, **played)
    hero = make_agent((NetEvaluator(net), SearchConfig(simulations=0)))
    # A match has deals of its own: none that either of them has learned from.
    result = play_match(hero, villain, deals=config.deals, mode="one", **played)
    out.table(
        f"{checkpoint}: points a round that a fresh seat learned to gain from copies of it, 95 % interval over deals",
        ["gain", "low", "high", "deals", "rounds"],
        [[f"{result.mean:+.3f}", f"{result.low:+.3f}", f"{result.high:+.3f}", str(result.deals), str(result.rounds)]],
    )
    return {"exploit": str(checkpoint)} | result.as_dict()


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    config, agents = parse(arguments)
    summary = _run(config, agents)
    if config.json:
        print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
