"""`bench.py training`: an agent from nothing, by the wall clock, and what its last checkpoint is worth."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shmzero.arena import Mode, make_agent, play_match
from shmzero.errors import ConfigError, WorkerDied
from shmzero.records import newest_checkpoint
from shmzero.train_config import TrainConfig, read_train_toml
from tools.measure import Result

DEALS = 1000
SEED = 31
"""Deals that neither the training nor its own matches have seen."""
MODES: dict[Mode, str] = {"one": "one against the others", "rest": "the others against one"}


def add_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--run", type=Path, help="a training run that is finished, instead of one from nothing")
    sub.add_argument("--device", default="auto", help="of the training: auto, cpu, cuda ... (default auto)")
    sub.add_argument("--minutes", type=float, help="of the training (default 2; 0.5 with --quick)")
    sub.add_argument("--opponents", default="threshold,mc90", help="bots that it plays (default threshold,mc90)")
    sub.add_argument("--deals", type=int, help=f"of each match (default {DEALS}; 100 with --quick)")
    sub.add_argument("--search", default="3x30", help="with which it plays as well (default 3x30)")


def bench_training(given: argparse.Namespace) -> list[Result]:
    """What training comes to: the last checkpoint, without and with search, against bots by duplicate deals."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.run or Path(scratch) / "run"
        results = [] if given.run else _train(
            folder, given.minutes or (0.5 if given.quick else 2.0), given.device
        )
        if newest_checkpoint(folder) is None:
            raise ConfigError(f"--run {folder} has no checkpoint")
        return results + _matches(folder, given)


def _train(folder: Path, minutes: float, device: str) -> list[Result]:
    flags = [str(folder), "--minutes", str(minutes), "--opponents", "", "--device", device, "--json"]
    done = subprocess.run([sys.executable, "-m", "shmzero.train", *flags], capture_output=True, text=True)
    if done.returncode != 0:
        error = ConfigError if done.returncode == 2 else WorkerDied
        line = (done.stderr.splitlines() or ["it said nothing"])[-1].removeprefix("error: ")
        raise error(f"the training ended with status {done.returncode}: {line}")
    summary: dict[str, Any] = json.loads(done.stdout)
    return [
        Result("from the command to the last checkpoint", summary["elapsed_s"], "s", f"<= {60 * minutes:.0f}"),
        Result("rounds", float(summary["rounds"])),
        Result("learner steps", float(summary["steps"])),
    ]


def _matches(folder: Path, given: argparse.Namespace) -> list[Result]:
    config = TrainConfig(**read_train_toml(folder / "config.toml"))
    played = {"players": config.players, "cards": config.cards, "trump": config.trump, "games": config.games}
    policy, searched = (make_agent(f"{folder}:{how}") for how in ("policy", given.search))
    bots = [(bot, make_agent(bot)) for bot in given.opponents.split(",")]
    pairs = [(how, hero, bot, villain) for bot, villain in bots for how, hero in
             (("policy", policy), (given.search, searched))]  # fmt: skip
    deals = given.deals or (100 if given.quick else DEALS)
    results = []
    for how, hero, bot, villain in [*pairs, (given.search, searched, "its policy", policy)]:
        for mode, words in MODES.items():
            match = play_match(hero, villain, deals=deals, seed=SEED, mode=mode, **played)
            name = f"{how} against {bot}, {words}"
            results.append(Result(name, match.mean, "points/round", "", match.low, match.high))
    return results
