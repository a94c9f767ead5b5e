"""`bench.py training`: an agent from nothing, by the wall clock, and what its last checkpoint is worth."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shmzero.errors import ConfigError, WorkerDied
from shmzero.game.bots import built_in_bot
from shmzero.matches.agents import make_agent
from shmzero.matches.duplicate import Mode, play_match
from shmzero.plot import plot
from shmzero.runs.checkpoints import newest_checkpoint
from shmzero.runs.folder import RunFolder
from shmzero.runs.metrics import read_metrics
from shmzero.training.config import TrainConfig
from shmzero.training.presets import TRAIN_PRESETS, read_train_toml
from tools.benchmarks.intervals import t_quantile
from tools.benchmarks.measure import Result
from tools.benchmarks.options import quick_flag

DEALS = 1000
SEED = 31
"""Deals that neither the training nor its own matches have seen; those of the next run have the next seed."""
MODES: dict[Mode, str] = {"one": "one against the others", "rest": "the others against one"}


def add_options(sub: argparse.ArgumentParser) -> None:
    quick_flag(sub)
    sub.add_argument("--run", type=Path, help="a training run that is finished, instead of one from nothing")
    sub.add_argument("--device", help="of the training: auto, cpu, cuda ... (default auto)")
    sub.add_argument("--minutes", type=float, help="of the training (default 2; 0.5 with --quick)")
    sub.add_argument("--preset", choices=sorted(TRAIN_PRESETS), help="default: smoke")
    sub.add_argument("--seeds", type=int, default=1, help="so many runs, of seeds 0, 1, ...: means with 95 %% "
                     "intervals over the runs instead of the deals (default 1)")  # fmt: skip
    sub.add_argument(
        "--match-opponents",
        dest="opponents",
        default="threshold,mc90",
        help="bots that it plays (default threshold,mc90)",
    )
    sub.add_argument("--deals", type=int, help=f"of each match (default {DEALS}; 100 with --quick)")
    sub.add_argument("--search", default="3x30", help="with which it plays as well (default 3x30)")
    sub.add_argument("--picture", type=Path, metavar="FILE.png", help="the first run's curves (needs matplotlib)")


def measure(given: argparse.Namespace) -> list[Result]:
    """What training comes to: the last checkpoint, without and with search, against bots by duplicate deals."""
    if given.seeds < 1 or (given.run and given.seeds > 1):
        raise ConfigError(f"--seeds is {given.seeds}; allowed: 1 and up, and with --run 1")
    trained = [name for name in ("minutes", "preset", "device") if given.run and getattr(given, name) is not None]
    if trained:
        raise ConfigError(f"--{trained[0]} is set with --run, which is trained already; allowed: without")
    bots = [name for name in given.opponents.split(",") if name]
    for name in bots:
        if built_in_bot(name) is None:
            raise ConfigError(f"--match-opponents names {name!r}; allowed: bots, such as mc900,uct10x90")
    if given.picture:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise ConfigError("--picture needs matplotlib; install it with: pip install matplotlib") from None
    minutes = given.minutes or (0.5 if given.quick else 2.0)
    runs = []
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as scratch:
            folder = given.run or Path(scratch) / f"{given.preset or 'smoke'}-{minutes:g}-minutes"
            if given.run and newest_checkpoint(folder) is None:
                raise ConfigError(f"--run {folder} has no checkpoint")
            results = _finished(folder) if given.run else _train(folder, given, minutes, seed)
            if given.picture and seed == 0:
                plot(folder, given.picture)
            runs.append(results + _matches(folder, given, bots, SEED + seed))
    return runs[0] if len(runs) == 1 else over_runs(runs)


def over_runs(runs: Sequence[list[Result]]) -> list[Result]:
    """Means over runs with their 95 % intervals by Student's distribution; of times the longest."""
    found = []
    for lines in zip(*runs, strict=True):
        values = [float(line.value) for line in lines]
        if lines[0].unit == "s":
            found.append(Result(f"{lines[0].name}, the longest of {len(runs)}", max(values), "s", lines[0].goal))
            continue
        mean = statistics.mean(values)
        margin = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        name = f"{lines[0].name}, {len(runs)} runs"
        found.append(Result(name, mean, lines[0].unit, "", mean - margin, mean + margin))
    return found


def _train(folder: Path, given: argparse.Namespace, minutes: float, seed: int) -> list[Result]:
    """The run as anybody has it, its own matches included; the time is to the last checkpoint's being there."""
    flags = [str(folder), "--preset", given.preset or "smoke", "--device", given.device or "auto",
             "--minutes", str(minutes), "--seed", str(seed), "--json"]  # fmt: skip
    start = time.time()
    done = subprocess.run([sys.executable, "-m", "shmzero.train", *flags], capture_output=True, text=True)
    if done.returncode != 0:
        error = ConfigError if done.returncode == 2 else WorkerDied
        line = (done.stderr.splitlines() or ["it said nothing"])[-1].removeprefix("error: ")
        raise error(f"the training ended with status {done.returncode}: {line}")
    summary: dict[str, Any] = json.loads(done.stdout)
    seconds = Path(summary["checkpoint"]).stat().st_mtime - start
    return [
        Result("from the command to the last checkpoint", seconds, "s", f"<= {60 * minutes:.0f}"),
        Result("rounds", float(summary["rounds"])),
        Result("learner steps", float(summary["steps"])),
    ]


def _finished(folder: Path) -> list[Result]:
    """What a run's metrics say that it took."""
    last = [line for line in read_metrics(RunFolder(folder).metrics) if "learner" in line][-1]
    return [
        Result("trained, all sessions", last["elapsed_s"], "s"),
        Result("rounds", float(last["rounds"])),
        Result("learner steps", float(last["learner"]["steps"])),
    ]


def _matches(folder: Path, given: argparse.Namespace, names: Sequence[str], seed: int) -> list[Result]:
    config = TrainConfig.of(**read_train_toml(RunFolder(folder).config))
    played: dict[str, Any] = {
        "players": config.deals.players,
        "cards": config.deals.cards,
        "trump": config.deals.trump,
        "games": config.deals.whole_games,
    }
    policy, searched = (make_agent(f"{folder}:{how}") for how in ("policy", given.search))
    bots = [(bot, make_agent(bot)) for bot in names]
    pairs = [(how, hero, bot, villain) for bot, villain in bots for how, hero in
             (("policy", policy), (given.search, searched))]  # fmt: skip
    deals = given.deals or (100 if given.quick else DEALS)
    results = []
    for how, hero, bot, villain in [*pairs, (given.search, searched, "its policy", policy)]:
        for mode, words in MODES.items():
            match = play_match(hero, villain, deals=deals, seed=seed, mode=mode, **played)
            name = f"{how} against {bot}, {words}"
            results.append(Result(name, match.mean, "points/round", "", match.low, match.high))
    return results
