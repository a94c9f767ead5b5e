#!/usr/bin/env python3
"""What each choice of the training brings, on equal wall time: python tools/ablate_training.py --out runs/ablation.

Every arm changes one thing and trains with each seed; seeds come in the outer loop, and the same command goes
on where it was stopped. With --at-once each run has its share of the cores for itself. Then the last checkpoint of
each seed of an arm plays those of all seeds of what it is held against, by duplicate deals, one against the others
and the others against one: without search, and where the change is one of the search with the same search on both
sides as well, each by its own rule. Every pair has deals of its own. The seed is the unit: the interval is over the
seeds of both sides, and p-values are Holm's over all comparisons.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import statistics
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

try:
    from shmzero.cli.command import run_command
    from shmzero.errors import ConfigError
    from shmzero.files import append_line
    from shmzero.runs.checkpoints import newest_checkpoint
    from shmzero.runs.metrics import read_metrics
    from tools.benchmarks.intervals import crossed, difference, holm
    from tools.benchmarks.machine import machine
    from tools.benchmarks.measure import Result
    from tools.benchmarks.options import ToolParser, output_flags, put_out
except ImportError as error:
    sys.exit(f"error: {error}; start it as: env/run python tools/ablate_training.py")

MATCHES_NAME = "matches.jsonl"
BOT = "threshold"
BASE = "base"
POLICY = "policy"
SEARCHED = "3x30"
"""With which an arm whose rule acts at play is compared as well."""
SEARCH = ("--search", "3x30", "--random-moves", "0.25")


@dataclass(frozen=True)
class Arm:
    """A change of the training."""

    flags: tuple[str, ...] = ()
    against: str = BASE
    environment: dict[str, str] = field(default_factory=dict)
    """Where it is set, the agents live in a world of their own and are compared by what they score against a bot."""
    rule: str = ""
    """What it changes of a search at play, in the words of arena.make_agent."""

    def ways(self) -> list[str]:
        """How its checkpoints play those of the other arm."""
        return [POLICY, SEARCHED] if self.rule else [POLICY]


ARMS = {
    BASE: Arm(),
    "visits": Arm(("--targets", "visits", *SEARCH)),
    "improved": Arm(("--targets", "improved", *SEARCH)),
    "fixed suits": Arm(environment={"SHMZERO_SUITS": "fixed"}),
    "halving": Arm(("--targets", "improved", "--root", "halving", *SEARCH), "improved", rule="+halving"),
    "max^n": Arm(("--targets", "visits", "--opponent-model", "maximise", *SEARCH), "visits", rule="+maximise"),
    "solver leaves": Arm(("--targets", "visits", "--solved-cards", "8", *SEARCH), "visits", rule="+solver8"),
    "tricks head": Arm(("--tricks-weight", "0.1")),
    "batch 1024": Arm(("--batch", "1024")),
    "2048 lanes": Arm(("--lanes", "2048")),
    "replay ratio 1": Arm(("--replay-ratio", "1")),
    "replay ratio 4": Arm(("--replay-ratio", "4")),
    "replay ratio 8": Arm(("--replay-ratio", "8")),
    "unweighted critic": Arm(("--importance-cap", "1")),
    "7 redeals": Arm(("--redeals", "7")),
    "neurd 0.2": Arm(("--neurd-share", "0.2")),
    "rivalry 1": Arm(("--rivalry", "1")),
    "entropy to 0.002": Arm(("--entropy-last", "0.002")),
}
"""Held against the smoke preset as it is, or against another arm."""

Pairing = tuple[str, str, int, str, int]
"""(policy or the search, arm, seed, what it is held against, that one's seed)."""


# --- runs and matches -------------------------------------------------------------------------------


class Ablation:
    """The folder of an ablation: a training run for each arm and seed, and matches.jsonl."""

    def __init__(self, folder: Path, minutes: float, deals: int, more: Sequence[str] = (), at_once: int = 1) -> None:
        """`more`: flags of every training run. `at_once`: into how many shares the cores are cut."""
        self.folder = folder
        self.cores = len(os.sched_getaffinity(0)) // at_once
        """Of each run."""
        self.minutes = minutes
        self.deals = deals
        self.more = tuple(more)
        folder.mkdir(parents=True, exist_ok=True)

    def run_folder(self, arm: str, seed: int) -> Path:
        """A run of other minutes, or on another number of cores, is another run."""
        name = arm.replace(" ", "-").replace("^", "")
        return self.folder / f"{name}-{self.cores}x{self.minutes:g}min-{seed}"

    def train(self, arm: str, seed: int) -> None:
        """Train, or go on, or find it done. Raises CalledProcessError."""
        flags = [
            "--minutes",
            str(self.minutes),
            "--seed",
            str(seed),
            "--match-opponents",
            "",
            *self.more,
            *ARMS[arm].flags,
        ]
        _module("shmzero.train", [str(self.run_folder(arm, seed)), *flags, "--json"], ARMS[arm])

    def play(self, arm: str, seed: int, seeds: Sequence[int]) -> None:
        """Matches of one seed of an arm, kept in matches.jsonl; none where they are there already."""
        pairings: list[Pairing] = [(POLICY, arm, seed, BOT, 0)]
        if not ARMS[arm].environment and arm != BASE:
            pairings += [(way, arm, seed, ARMS[arm].against, other) for way in ARMS[arm].ways() for other in seeds]
        known = self.means()
        for pairing in pairings:
            if pairing not in known:
                self._play(pairing)

    def _play(self, pairing: Pairing) -> None:
        way, arm, seed, against, other = pairing
        hero = self._agent(arm, seed, way, ARMS[arm].rule)
        villain = BOT if against == BOT else self._agent(against, other, way, ARMS[against].rule)
        own_deals = zlib.crc32(repr(pairing).encode())
        out = _module("shmzero.arena", [hero, villain, "--deals", str(self.deals), "--seed", str(own_deals), "--json"],
                      ARMS[arm])  # fmt: skip
        mean = statistics.mean(match["mean"] for match in json.loads(out)["matches"])
        append_line(self.folder / MATCHES_NAME, self._key(pairing) | {"mean": mean})

    def _agent(self, arm: str, seed: int, way: str, rule: str) -> str:
        return f"{self._checkpoint(arm, seed)}:{way}" + (rule if way != POLICY else "")

    def _checkpoint(self, arm: str, seed: int) -> Path:
        found = newest_checkpoint(self.run_folder(arm, seed))
        if found is None:
            raise ConfigError(f"{self.run_folder(arm, seed)} has no checkpoint; train longer")
        return found

    def _key(self, pairing: Pairing) -> dict[str, Any]:
        """What a match is known by: who played how, with which checkpoints, on how many deals."""
        way, arm, seed, against, other = pairing
        checkpoints = [self._checkpoint(arm, seed)] + ([] if against == BOT else [self._checkpoint(against, other)])
        return {
            "way": way,
            "arm": arm,
            "seed": seed,
            "against": against,
            "other": other,
            "minutes": self.minutes,
            "deals": self.deals,
            "checkpoints": [str(path.relative_to(self.folder)) for path in checkpoints],
        }

    def means(self) -> dict[Pairing, float]:
        """Points of every pairing whose match is kept and is of the checkpoints that there are now."""
        path = self.folder / MATCHES_NAME
        found = {}
        for line in read_metrics(path) if path.exists() else []:
            pairing: Pairing = (line["way"], line["arm"], line["seed"], line["against"], line["other"])
            mean = line.pop("mean")
            if line["minutes"] == self.minutes and line["deals"] == self.deals and line == self._key(pairing):
                found[pairing] = mean
        return found

    def results(self, arms: Sequence[str], seeds: Sequence[int]) -> list[Result]:
        """A line for each arm: points a round more than what it is held against; and against the bot."""
        means = self.means()

        def against_bot(arm: str) -> list[float]:
            return [means[POLICY, arm, seed, BOT, 0] for seed in seeds]

        results, differences = [], {}
        for arm in arms:
            rows = against_bot(arm)
            results.append(Result(f"{arm}: against {BOT}", statistics.mean(rows), "points", "", min(rows), max(rows)))
        for arm in arms:
            other = ARMS[arm].against
            if arm == BASE:
                continue
            for way in ARMS[arm].ways():
                if ARMS[arm].environment:
                    rows, columns = against_bot(arm), against_bot(other)
                    found = difference(rows, columns, statistics.mean(rows) - statistics.mean(columns))
                else:
                    found = crossed(np.array([[means[way, arm, s, other, t] for t in seeds] for s in seeds]))
                differences[f"{arm} against {other}" + (f", with {way}" if way != POLICY else "")] = found
        corrected = holm([found.p for found in differences.values()])
        for (name, found), p in zip(differences.items(), corrected, strict=True):
            results.append(Result(name, found.mean, "points", "", found.low, found.high))
            results.append(Result(f"{name}: p, corrected", p))
        return results


def _module(name: str, arguments: Sequence[str], arm: Arm) -> str:
    done = subprocess.run([sys.executable, "-m", name, *arguments], env=os.environ | arm.environment,
                          stdout=subprocess.PIPE, text=True, check=True)  # fmt: skip
    return done.stdout


def run_jobs(jobs: Sequence[Callable[[], None]], at_once: int) -> None:
    """Run them in order, so many at a time, each on its share of the cores; shares are equal.

    Raises what the first that fails raises: none is begun after it, and those that run are let finish.
    """
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // at_once
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for first in range(0, each * at_once, each):
        shares.put(set(cores[first : first + each]))
    # Linux counts affinity by thread, and a child has that of the thread that starts it.
    with ThreadPoolExecutor(at_once, initializer=lambda: os.sched_setaffinity(0, shares.get())) as pool:
        try:
            running = [pool.submit(job) for job in jobs]
            for future in wait(running, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def main() -> int:
    return run_command(_main)


def _main() -> int:
    parser = ToolParser(
        prog="tools/ablate_training.py",
        description=(__doc__ or "").partition("\n\n")[2],
        epilog="example: env/run python tools/ablate_training.py --out runs/ablation --arms visits 'tricks head'",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=[arm for arm in ARMS if arm != BASE],
        default=[arm for arm in ARMS if arm != BASE],
        metavar="ARM",
        help=", ".join(ARMS),
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=2.0, help="of each run (default: 2)")
    parser.add_argument("--deals", type=int, default=200, help="of each match, played from every seat (default: 200)")
    parser.add_argument(
        "--at-once", type=int, default=1, help="runs and matches at a time, each on its share of the cores (default: 1)"
    )
    output_flags(parser)
    given = parser.parse_args()
    if given.seeds < 2:
        raise ConfigError(f"--seeds is {given.seeds}; allowed: 2 and up")
    if not 1 <= given.at_once <= len(os.sched_getaffinity(0)):
        raise ConfigError(f"--at-once is {given.at_once}; allowed: 1 to the number of cores")
    described = machine()
    wanted = {*given.arms, *(ARMS[arm].against for arm in given.arms), BASE}
    arms, seeds = [arm for arm in ARMS if arm in wanted], range(given.seeds)
    ablation = Ablation(given.out, given.minutes, given.deals, at_once=given.at_once)

    def train(seed: int, arm: str) -> None:
        print(f"seed {seed}: {arm}", file=sys.stderr, flush=True)
        ablation.train(arm, seed)

    try:
        run_jobs([functools.partial(train, seed, arm) for seed in seeds for arm in arms], given.at_once)
        run_jobs([functools.partial(ablation.play, arm, seed, seeds) for arm in arms for seed in seeds], given.at_once)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd[2:4]))} ended with status {error.returncode}", file=sys.stderr)
        return 1
    results = ablation.results(arms, seeds)
    put_out("ablate_training", given, described, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
