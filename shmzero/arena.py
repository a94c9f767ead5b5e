"""`python -m shmzero.arena`: matches and ratings of agents, and `play_match` for programs.

The matches are matches/duplicate.py, who plays them matches/agents.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from shmzero.cli.command import run_command
from shmzero.cli.flags import Layout, Parser, renamed_words
from shmzero.errors import ConfigError
from shmzero.files import is_folder
from shmzero.game.bots import BUILT_IN
from shmzero.game.deals import DEALS
from shmzero.machine import check_cuda
from shmzero.matches.agents import make_agent
from shmzero.matches.duplicate import Mode, play_match
from shmzero.matches.pool import rate
from shmzero.matches.tables import Output, bid_rows, match_rows
from shmzero.mcts.config import SearchConfig
from shmzero.runs.checkpoints import newest_checkpoint
from shmzero.settings import check_number

__all__ = ["main", "parse", "play_match"]

EXAMPLES = """examples:
  python -m shmzero.arena mc90 threshold random               mc90 against each of the others
  python -m shmzero.arena runs/a/net.safetensors mc900 --deals 1000 --mode both
  python -m shmzero.arena net.safetensors:policy old.safetensors:3x30 --players 4:15,5:70,6:15 --cards 1-7
  python -m shmzero.arena threshold random --whole-games --cards 7 --deals 20
  python -m shmzero.arena --rating random threshold mc90 mc900 --deals 500 --out runs/ratings
  python -m shmzero.arena --exploit runs/a --minutes 3        what a fresh seat learns to gain from copies of it"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command's arguments. Raises ConfigError."""
    parser = Parser(
        prog="python -m shmzero.arena",
        description="Matches of Blob by duplicate deals: every deal is played in each rotation of the seats.\n"
        f"Agents: {BUILT_IN}; a checkpoint or the folder of a training run, perhaps with :policy or :DxS,\n"
        "the latter perhaps with +halving, +maximise, +solver8.",
        epilog=EXAMPLES,
        formatter_class=Layout,
    )
    parser.add_argument("agents", nargs="*", metavar="AGENT", help="the hero and its villains; with --rating a pool")
    parser.add_argument(
        "--deals", type=int, default=1000, help="deals, or whole games with --whole-games (default: 1000)"
    )
    parser.add_argument("--players", help="4 (default), 3-6, or with weights 4:15,5:70,6:15")
    parser.add_argument(
        "--cards", help="cards each (default: 5), written likewise; with --whole-games the largest hand"
    )
    parser.add_argument(
        "--deals-from", choices=DEALS, help="players and cards of the plan's distribution, or of a broad one"
    )
    parser.add_argument("--trump", default="random", help="random, a suit, none, or several with commas")
    parser.add_argument(
        "--mode",
        choices=("one", "rest", "both"),
        help="one hero against n-1 villains, n-1 heroes against one, or both (default)",
    )
    parser.add_argument("--whole-games", action="store_true", help="play whole games instead of rounds")
    parser.add_argument("--rating", action="store_true", help="rate all agents together (Plackett-Luce)")
    parser.add_argument(
        "--exploit",
        type=Path,
        metavar="CHECKPOINT",
        help="train a fresh seat against copies of this one's policy; its gain bounds from below how exploitable it is",
    )
    parser.add_argument("--minutes", type=float, help="with --exploit: time of that training (default: 3)")
    parser.add_argument("--out", type=Path, help="with --rating: folder that gets ratings.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads for bots, networks and training (default: all cores)")
    parser.add_argument("--device", default="cpu", help="of checkpoints and of --exploit: cpu, cuda, cuda:1")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    words = renamed_words(sys.argv[1:] if arguments is None else arguments, {"games": "whole_games"})
    args: argparse.Namespace = parser.parse_args(words)
    deals = {"players": "4", "cards": "5"} | DEALS.get(args.deals_from, {})
    args.players = args.players or deals["players"]
    args.cards = args.cards or deals["cards"]
    if args.mode and (args.rating or args.exploit):
        raise ConfigError("--mode is set with --rating or --exploit; allowed: with matches of a hero")
    args.mode = args.mode or "both"
    if args.exploit:
        if args.agents or args.rating or args.whole_games:
            raise ConfigError("--exploit is set with agents, --rating or --whole-games; allowed: it alone, on rounds")
        if is_folder(args.exploit):
            args.exploit = newest_checkpoint(args.exploit) or args.exploit
        if not args.exploit.is_file():
            raise ConfigError(f"--exploit {args.exploit} is no checkpoint and no run with one")
    elif args.minutes is not None:
        raise ConfigError("--minutes is set without --exploit; it is the time of its training")
    elif not args.agents:
        raise ConfigError("no agents; allowed: two or more, or --exploit CHECKPOINT")
    elif len(args.agents) < 2:
        raise ConfigError(f"one agent, {args.agents[0]}, has nobody to play; allowed: two or more agents")
    if args.out and not args.rating:
        raise ConfigError("--out is set without --rating; it is where ratings.json goes")
    if args.threads is not None:
        check_number("threads", args.threads, 1, 1024)
    if args.device == "cuda":
        args.device = "cuda:0"
    if not re.fullmatch(r"cpu|cuda:\d{1,3}", args.device):
        raise ConfigError(f"device is {args.device!r}; allowed: cpu, cuda, cuda:1")
    check_cuda("device", args.device, [args.device])
    return args


def _run(args: argparse.Namespace) -> dict[str, Any]:
    out = Output(args.json)
    if args.exploit:
        return _exploit(args, out)
    agents = [make_agent(spec, args.device, args.threads) for spec in args.agents]
    what = {"deals": args.deals, "players": args.players, "cards": args.cards, "trump": args.trump,
            "games": args.whole_games, "seed": args.seed, "threads": args.threads}  # fmt: skip
    if args.rating:
        table = rate(agents, **what, show=out.progress("rating"))
        out.table(
            f"ratings, {table.anchor} = 0, 95 % intervals over {table.deals} deals",
            ["agent", "rating", "low", "high", "win share", "seats"],
            [[name, f"{r.rating:+.0f}", f"{r.low:+.0f}", f"{r.high:+.0f}", f"{r.win_share:.3f}", str(r.seats)]
             for name, r in table.agents.items()],
        )  # fmt: skip
        if args.out:
            table.save(args.out)
        return table.as_dict()
    hero, *villains = agents
    modes: tuple[Mode, ...] = ("one", "rest") if args.mode == "both" else (args.mode,)
    results = []
    for villain in villains:
        for mode in modes:
            show = out.progress(f"{hero.name} against {villain.name}, {mode}")
            results.append(play_match(hero, villain, mode=mode, show=show, **what))
    unit = "games" if args.whole_games else "rounds"
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


def _exploit(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    from shmzero.matches.exploit import learn_against
    from shmzero.nets.evaluator import NetEvaluator

    played = {"players": args.players, "cards": args.cards, "trump": args.trump}
    villain = make_agent(f"{args.exploit}:policy", args.device, args.threads)
    minutes = 3.0 if args.minutes is None else args.minutes
    net = learn_against(
        args.exploit, minutes=minutes, seed=args.seed, show=out.line, device=args.device, threads=args.threads, **played
    )
    hero = make_agent((NetEvaluator(net), SearchConfig(simulations=0)))
    # A match has deals of its own: none that either of them has learned from.
    result = play_match(hero, villain, deals=args.deals, seed=args.seed, mode="one", threads=args.threads, **played)
    out.table(
        f"{args.exploit}: points a round that a fresh seat learned to gain from copies of it, 95 % interval over deals",
        ["gain", "low", "high", "deals", "rounds"],
        [[f"{result.mean:+.3f}", f"{result.low:+.3f}", f"{result.high:+.3f}", str(result.deals), str(result.rounds)]],
    )
    return {"exploit": str(args.exploit)} | result.as_dict()


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    args = parse(arguments)
    summary = _run(args)
    if args.json:
        print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
