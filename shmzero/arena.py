"""Matches between agents by duplicate deals, and `python -m shmzero.arena`, the command for them.

An agent is a built-in opponent, a checkpoint with or without search, or any evaluator with a
SearchConfig. Every deal is played once in each rotation of the seats, so that luck of the cards falls
on all alike; the deal is the unit of every interval. The rounds are played by csrc/match.h. Ratings of
more than two agents are rating.py.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from shmzero import _core
from shmzero.command import Parser, run_command
from shmzero.config import (
    BUILT_IN,
    SearchConfig,
    built_in_bot,
    check_choice,
    check_cuda,
    check_number,
    cores,
    plain,
    play_settings,
)
from shmzero.errors import ConfigError
from shmzero.rating import Ratings, draw_tables, ratings
from shmzero.records import is_folder, newest_checkpoint
from shmzero.search import Evaluator
from shmzero.train_config import DEALS

Rows = tuple[NDArray[np.float32], NDArray[np.float32]]
Mode = Literal["one", "rest"]

DEFAULT_SEARCH = SearchConfig(determinizations=3, simulations=30)
"""The search of a checkpoint that is named without a suffix."""
ROWS_PER_STEP = 4096
"""Lanes are as many as make batches of about this size."""
BOT_LANES = 128
CPU_BATCH = 512
CUDA_BATCH = 4096
NORMAL_95 = 1.96

EXAMPLES = """examples:
  python -m shmzero.arena mc90 threshold random               mc90 against each of the others
  python -m shmzero.arena runs/a/net.safetensors mc900 --deals 1000 --mode both
  python -m shmzero.arena net.safetensors:policy old.safetensors:3x30 --players 4:15,5:70,6:15 --cards 1-7
  python -m shmzero.arena threshold random --games --cards 7 --deals 20
  python -m shmzero.arena --rating random threshold mc90 mc900 --deals 500 --out runs/ratings
  python -m shmzero.arena --exploit runs/a --minutes 3        what a fresh seat learns to gain from copies of it"""


@dataclass(frozen=True)
class Agent:
    """Who plays: a bot of the core, or a search over an evaluator."""

    name: str
    config: _core.BotConfig | SearchConfig
    evaluate: Callable[[NDArray[np.float16], NDArray[np.uint64]], Rows] | None = None
    """(policies [B, 52], values [B, 1]) of features [B, 256] and mask words [B]; None for a bot."""

    def rows_per_step(self, players: int) -> int:
        if isinstance(self.config, SearchConfig):
            return int(self.config.to_core().rows_per_step(players))
        return 0

    def to_core(self) -> _core.BotConfig | _core.SearchConfig:
        return self.config.to_core() if isinstance(self.config, SearchConfig) else self.config


AgentLike = str | Agent | tuple[Evaluator, SearchConfig]


def make_agent(spec: AgentLike, device: str = "cpu", threads: int | None = None) -> Agent:
    """The agent that a name, a checkpoint's path or an (evaluator, SearchConfig) stands for.

    Names: see config.built_in_bot. A training run's folder stands for its newest checkpoint. A path may end in
    `:policy` (no search) or `:DxS`; alone it is searched 3x30. A search may end in `+halving` (its root rule),
    `+maximise` (max^n) and `+solverN` (exact leaves of at most N cards in all hands).
    Agents play their best action, without noise or temperature. `device` runs checkpoints, on a
    CPU in so many `threads` (default: all cores). Raises ConfigError.
    """
    if isinstance(spec, Agent):
        return spec
    if isinstance(spec, tuple):
        evaluator, search = spec
        if search.known_hands:
            raise ConfigError("known_hands is set; a match never looks at hidden hands")
        return Agent(type(evaluator).__name__, search, _widened(evaluator))
    bot = built_in_bot(spec)
    return Agent(spec, bot) if bot else _checkpoint(spec, device, threads or cores())


def _checkpoint(spec: str, device: str, threads: int) -> Agent:
    path, search = spec, DEFAULT_SEARCH
    head, colon, suffix = spec.rpartition(":")
    if colon and suffix == "policy":
        path, search = head, SearchConfig(simulations=0)
    elif colon and (found := re.fullmatch(r"(\d{1,9})x(\d{1,9})(\+halving)?(\+maximise)?(?:\+solver(\d+))?", suffix)):
        path, search = head, SearchConfig(
            determinizations=int(found[1]), simulations=int(found[2]), root="halving" if found[3] else "puct",
            opponents="maximise" if found[4] else "policy", solved_cards=int(found[5] or 0),
        )
        check_number(f"simulations of {spec}", search.simulations, 1, 10**6)
    if is_folder(Path(path)):  # of a training run: its newest
        path = str(newest_checkpoint(Path(path)) or path)
    if not Path(path).is_file():
        raise ConfigError(
            f"agent {spec!r} is not built in ({BUILT_IN}), and there is no checkpoint file {path!r}; "
            "allowed after a file: :policy or :DxS, such as :3x30, and +halving, +maximise, +solver8 in this order"
        )
    return Agent(spec, search, _served(path, device, threads, search.simulations > 0))


def _served(
    path: str, device: str, threads: int, searched: bool
) -> Callable[[NDArray[np.float16], NDArray[np.uint64]], Rows]:
    """A checkpoint as an inference process would have it, but never compiled.

    On a CPU each thread runs batches of its own: torch's own threads wait for each other within every
    product, and stall where other programs use the cores. Batches do not depend on the threads.
    """
    from shmzero.net_device import make_net_device

    on_cpu = device == "cpu"
    batch = CPU_BATCH if on_cpu else CUDA_BATCH
    spec = {"checkpoint": path, "device": device, "threads": 1, "precision": "auto", "compile": False,
            "max_batch": batch, "searched": searched}  # fmt: skip
    nets = [make_net_device(spec) for _ in range(threads if on_cpu else 1)]
    pool = ThreadPoolExecutor(len(nets), "arena-net")

    def evaluate(features: NDArray[np.float16], masks: NDArray[np.uint64]) -> Rows:
        policies = np.empty((len(masks), _core.NUM_ACTIONS), np.float32)
        values = np.empty((len(masks), 1), np.float32)
        starts = range(0, len(masks), batch)

        def serve(index: int) -> None:
            net = nets[index]
            staging = net.staging(0)
            for start in starts[index :: len(nets)]:
                part = slice(start, min(start + batch, len(masks)))
                rows = part.stop - start
                staging.features[:rows], staging.masks[:rows] = features[part], masks[part]
                net.launch(0, rows)
                net.wait(0)
                policies[part], values[part] = staging.policies[:rows], staging.values[:rows]

        if len(nets) == 1:
            serve(0)  # CUDA's current device belongs to the thread that made the net
        else:
            list(pool.map(serve, range(min(len(nets), len(starts)))))
        return policies, values

    return evaluate


def _widened(evaluator: Evaluator) -> Callable[[NDArray[np.float16], NDArray[np.uint64]], Rows]:
    places = np.arange(_core.NUM_ACTIONS, dtype=np.uint64)

    def evaluate(features: NDArray[np.float16], masks: NDArray[np.uint64]) -> Rows:
        wide = (masks[:, None] >> places & np.uint64(1)).astype(np.bool_)
        policies, values = evaluator.evaluate_many(features.astype(np.float32), wide)
        return np.asarray(policies, np.float32), np.asarray(values, np.float32)

    return evaluate


@dataclass(frozen=True)
class MatchResult:
    """How the hero did. Means are over deals, each the mean of its rotations."""

    hero: str
    villain: str
    mode: str
    deals: int
    rounds: int
    mean: float
    """Points per round: own minus the mean of the others; in mode "rest" the mean of the heroes minus the villain."""
    low: float
    high: float
    """95 % interval of `mean`: normal, over deals."""
    exact_bid: dict[int, float]
    """The share of the hero's rounds in which it won exactly what it bid, by hand size."""
    villain_exact_bid: dict[int, float]
    ceiling: dict[int, float]
    """The most that the mean exact-bid rate of whole tables can be, by hand size: (n-1)/n, for the hook makes one
    bid fail; over the tables that the hero's rate is over."""
    win_share: float
    """The hero's expected share of the win (most points of a round, or of a game with `games`; equals share it).
    In mode "rest" that of one hero. 1/n is what equals would have."""
    fair_share: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def match_plan(
    players: SupportsIndex | str, cards: SupportsIndex | str, trump: str, games: bool, seed: int
) -> _core.PlaySettings:
    """What a match deals, in the words of self-play. Raises ConfigError."""
    return play_settings(SearchConfig(), seed, str(plain(players)), str(plain(cards)), trump, "random", games)


def play_tables(
    agents: Sequence[Agent],
    tables: NDArray[np.uint8],
    settings: _core.PlaySettings,
    threads: int | None = None,
    show: Callable[[int], None] = lambda rounds: None,
) -> dict[str, NDArray[Any]]:
    """Play one deal for each of `tables` [D, 8] (agents by seat) in all rotations; returns the rounds.

    Columns [N], or [N, 8] by seat, as `_core.MatchRun.rounds` has them, sorted by deal, rotation and
    round. In rotation r seat s is held by tables[d, (s - r) mod players].
    """
    widest = max([agent.rows_per_step(settings.most_players) for agent in agents])
    lanes = BOT_LANES if widest == 0 else min(max(ROWS_PER_STEP // widest, 64), 2048)
    run = _core.MatchRun(settings, [agent.to_core() for agent in agents], tables.tolist(), lanes, threads or cores())
    while (blocks := run.step()) is not None:
        for index, features, masks in blocks:
            evaluate = agents[index].evaluate
            assert evaluate is not None
            run.answer(index, *evaluate(features, masks))
        show(run.num_rounds)
    rounds = run.rounds()
    order = np.lexsort((rounds["round_of_game"], rounds["rotation"], rounds["deal"]))
    return {name: column[order] for name, column in rounds.items()}


def play_match(
    hero: AgentLike,
    villain: AgentLike,
    *,
    deals: SupportsIndex,
    players: SupportsIndex | str = 4,
    cards: SupportsIndex | str = "5",
    seed: SupportsIndex = 0,
    mode: Mode = "one",
    trump: str = "random",
    games: bool = False,
    threads: int | None = None,
    show: Callable[[int], None] = lambda rounds: None,
) -> MatchResult:
    """One hero against villains in all other seats ("one"), or one villain among heroes ("rest").

    Each of `deals` deals (with `games` whole games) is played in every rotation: the number of units is
    deals x players. `players` and `cards` may be distributions such as "3-6" or "4:15,5:70". No deal is
    one of self-play with the same seed. A function of its arguments, for evaluators whose rows do not
    depend on the batch. Raises ConfigError; ValueError and RuntimeError as `search` does.
    """
    deals, seed = operator.index(deals), operator.index(seed)
    check_number("deals", deals, 2, 10**7)
    check_choice("mode", mode, ("one", "rest"))
    start = time.monotonic()
    agents = [make_agent(hero), make_agent(villain)]
    settings = match_plan(players, cards, trump, games, seed)
    odd, others = (0, 1) if mode == "one" else (1, 0)
    table = np.full((deals, _core.MAX_PLAYERS), others, np.uint8)
    table[:, 0] = odd
    rounds = play_tables(agents, table, settings, threads, show)
    return _result(agents, mode, games, deals, rounds, time.monotonic() - start)


def _result(
    agents: Sequence[Agent], mode: str, games: bool, deals: int, rounds: dict[str, NDArray[Any]], seconds: float
) -> MatchResult:
    odd_seat = rounds["rotation"]  # the odd one out sits at place 0 of the table
    num = rounds["players"]
    seated = np.arange(_core.MAX_PLAYERS) < num[:, None]
    at_odd = np.arange(_core.MAX_PLAYERS) == odd_seat[:, None]

    # Points and wins by unit: a round, or a game.
    first = np.flatnonzero(rounds["round_of_game"] == 0)
    length = np.diff(np.append(first, len(num)))
    totals = np.add.reduceat(np.where(seated, rounds["scores"], 0), first)
    players, seats = num[first], seated[first]
    odd_points = totals[at_odd[first]]
    lead = (odd_points - (totals.sum(1) - odd_points) / (players - 1)) / length
    highest = np.where(seats, totals, np.iinfo(totals.dtype).min)
    winners = (highest == highest.max(1, keepdims=True)) & seats
    odd_win = winners[at_odd[first]] / winners.sum(1)

    deal = rounds["deal"][first]
    sign = 1 if mode == "one" else -1
    by_deal = sign * np.bincount(deal, lead, deals) / np.bincount(deal, minlength=deals)
    margin = NORMAL_95 * float(by_deal.std(ddof=1)) / math.sqrt(deals)
    mean = float(by_deal.mean())

    exact = rounds["bids"] == rounds["tricks"]
    most = np.broadcast_to((1 - 1 / num)[:, None], exact.shape)

    def by_size(of_seats: NDArray[Any], mask: NDArray[np.bool_]) -> dict[int, float]:
        sizes = rounds["cards"][:, None]
        return {int(size): float(of_seats[mask & (sizes == size)].mean()) for size in np.unique(sizes)}

    others = seated & ~at_odd
    hero, villain = (at_odd, others) if mode == "one" else (others, at_odd)
    win = odd_win if mode == "one" else (1 - odd_win) / (players - 1)
    return MatchResult(
        hero=agents[0].name,
        villain=agents[1].name,
        mode=mode,
        deals=deals,
        rounds=len(num),
        mean=mean,
        low=mean - margin,
        high=mean + margin,
        exact_bid=by_size(exact, hero),
        villain_exact_bid=by_size(exact, villain),
        ceiling=by_size(most, hero),
        win_share=float(win.mean()),
        fair_share=float((1 / players).mean()),
        seconds=seconds,
    )


def rate(
    pool: Sequence[AgentLike],
    *,
    deals: SupportsIndex,
    players: SupportsIndex | str = 4,
    cards: SupportsIndex | str = "5",
    seed: SupportsIndex = 0,
    trump: str = "random",
    games: bool = False,
    threads: int | None = None,
    show: Callable[[int], None] = lambda rounds: None,
) -> Ratings:
    """Ratings of a pool of at least two agents that meet at mixed tables, each deal in all rotations.

    With `games` whole games are ranked, otherwise rounds. Raises ConfigError.
    """
    deals, seed = operator.index(deals), operator.index(seed)
    check_number("deals", deals, 2, 10**7)
    agents = [make_agent(spec) for spec in pool]
    names = [agent.name for agent in agents]
    if len(agents) < 2:
        raise ConfigError(f"the pool has {len(agents)} agents; allowed: 2 or more")
    if len(agents) > 255:
        raise ConfigError(f"the pool has {len(agents)} agents; allowed: at most 255")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"agent {twice} is in the pool twice; allowed: each once")
    settings = match_plan(players, cards, trump, games, seed)
    tables = np.zeros((deals, _core.MAX_PLAYERS), np.uint8)
    most = settings.most_players
    tables[:, :most] = draw_tables(len(agents), deals, most, seed)
    rounds = play_tables(agents, tables, settings, threads, show)
    first = np.flatnonzero(rounds["round_of_game"] == 0)
    seats = np.arange(_core.MAX_PLAYERS)
    num = rounds["players"][first][:, None]
    place = (seats - rounds["rotation"][first][:, None]) % num
    seated = np.where(seats < num, np.take_along_axis(tables[rounds["deal"][first]].astype(int), place, 1), -1)
    absent = sorted(set(range(len(agents))) - set(np.unique(seated)))
    if absent:
        raise ConfigError(f"deals is {deals}, and {names[absent[0]]} had a seat in none; allowed: more of them")
    points = np.add.reduceat(rounds["scores"], first).astype(float)
    played = {"players": str(plain(players)), "cards": str(plain(cards)), "trump": trump, "games": games, "seed": seed}
    return ratings(names, seated, points, rounds["deal"][first].astype(int), settings=played, seed=seed)


# --- the command ------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command's arguments. Raises ConfigError."""
    parser = Parser(
        prog="python -m shmzero.arena",
        description="Matches of Blob by duplicate deals: every deal is played in each rotation of the seats.\n"
        f"Agents: {BUILT_IN}; a checkpoint or the folder of a training run, perhaps with :policy or :DxS,\n"
        "the latter perhaps with +halving, +maximise, +solver8.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("agents", nargs="*", metavar="AGENT", help="the hero and its villains; with --rating a pool")
    parser.add_argument("--deals", type=int, default=1000, help="deals, or whole games with --games (default: 1000)")
    parser.add_argument("--players", help="4 (default), 3-6, or with weights 4:15,5:70,6:15")
    parser.add_argument("--cards", help="cards each (default: 5), written likewise; with --games the largest hand")
    parser.add_argument(
        "--deals-from", choices=DEALS, help="players and cards of the plan's distribution, or of a broad one"
    )
    parser.add_argument("--trump", default="random", help="random, a suit, none, or several with commas")
    parser.add_argument(
        "--mode",
        choices=("one", "rest", "both"),
        help="one hero against n-1 villains, n-1 heroes against one, or both (default)",
    )
    parser.add_argument("--games", action="store_true", help="whole games instead of rounds")
    parser.add_argument("--rating", action="store_true", help="rate all agents together (Plackett-Luce)")
    parser.add_argument(
        "--exploit", type=Path, metavar="CHECKPOINT",
        help="train a fresh seat against copies of this one's policy; its gain bounds from below how exploitable it is",
    )
    parser.add_argument("--minutes", type=float, help="with --exploit: time of that training (default: 3)")
    parser.add_argument("--out", type=Path, help="with --rating: folder that gets ratings.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads for bots, networks and training (default: all cores)")
    parser.add_argument("--device", default="cpu", help="of checkpoints and of --exploit: cpu, cuda, cuda:1")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    args = parser.parse_args(arguments)
    deals = {"players": "4", "cards": "5"} | DEALS.get(args.deals_from, {})
    args.players = args.players or deals["players"]
    args.cards = args.cards or deals["cards"]
    if args.mode and (args.rating or args.exploit):
        raise ConfigError("--mode is set with --rating or --exploit; allowed: with matches of a hero")
    args.mode = args.mode or "both"
    if args.exploit:
        if args.agents or args.rating or args.games:
            raise ConfigError("--exploit is set with agents, --rating or --games; allowed: it alone, on rounds")
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


class _Output:
    """Tables on standard output: rich on a terminal, aligned columns elsewhere. Progress on standard error."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console

        self._console = Console(highlight=False)
        self._errors = Console(stderr=True, highlight=False)
        self._quiet = quiet

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if self._errors.is_terminal:
            self._errors.print(" " * (self._errors.width - 1), end="\r")  # the last line of progress
        if self._quiet:
            return
        if self._console.is_terminal:
            from rich.table import Table

            table = Table(title=title, title_justify="left")
            for i, name in enumerate(header):
                table.add_column(name, justify="left" if i == 0 else "right")
            for row in rows:
                table.add_row(*row)
            self._console.print(table)
            return
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        print(title)
        for row in [header, *rows]:
            first, *rest = (text.rjust(width) for text, width in zip(row, widths, strict=True))
            print("  ".join([first.strip().ljust(widths[0]), *rest]))

    def line(self, text: str) -> None:
        """One line of progress, on a terminal only."""
        if self._errors.is_terminal:
            self._errors.print(text[: self._errors.width - 1].ljust(self._errors.width - 1), end="\r", markup=False)

    def progress(self, what: str) -> Callable[[int], None]:
        """Shows rounds played, on a terminal only."""
        if not self._errors.is_terminal:
            return lambda rounds: None
        start = shown = time.monotonic()

        def show(rounds: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= 0.2:
                shown = now
                line = f"{what}: {rounds} rounds, {rounds / (now - start):,.0f}/s"
                self._errors.print(line[: self._errors.width - 1].ljust(self._errors.width - 1), end="\r", markup=False)

        return show


def _match_rows(results: Sequence[MatchResult]) -> list[list[str]]:
    return [
        [r.villain, r.mode, f"{r.mean:+.3f}", f"{r.low:+.3f}", f"{r.high:+.3f}", f"{r.win_share:.3f}",
         f"{r.fair_share:.3f}", str(r.deals), str(r.rounds), f"{r.seconds:.1f}"]
        for r in results
    ]  # fmt: skip


def _bid_rows(results: Sequence[MatchResult]) -> list[list[str]]:
    return [
        [
            r.villain,
            r.mode,
            str(size),
            f"{r.exact_bid[size]:.3f}",
            f"{r.villain_exact_bid[size]:.3f}",
            f"{r.ceiling[size]:.3f}",
        ]
        for r in results
        for size in r.exact_bid
    ]


def _run(args: argparse.Namespace) -> dict[str, Any]:
    out = _Output(args.json)
    if args.exploit:
        return _exploit(args, out)
    agents = [make_agent(spec, args.device, args.threads) for spec in args.agents]
    what = {"deals": args.deals, "players": args.players, "cards": args.cards, "trump": args.trump,
            "games": args.games, "seed": args.seed, "threads": args.threads}  # fmt: skip
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
    unit = "games" if args.games else "rounds"
    out.table(
        f"{hero.name}: points per round above the others, 95 % interval over deals; win share of {unit}",
        ["against", "mode", "points", "low", "high", "win", "equal", "deals", "rounds", "s"],
        _match_rows(results),
    )
    out.table(
        f"{hero.name}: exact bids",
        ["against", "mode", "cards", "hero", "villain", "ceiling"],
        _bid_rows(results),
    )
    return {"matches": [result.as_dict() for result in results]}


def _exploit(args: argparse.Namespace, out: _Output) -> dict[str, Any]:
    from shmzero.evaluators import NetEvaluator
    from shmzero.exploit import learn_against

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
