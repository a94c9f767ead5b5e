"""python -m shmzero.train RUN: self-play, learning and matches as one pipeline on one machine.

The parent owns the run folder: it commits finished rounds, hands them to the learner process, swaps
the learner's weights into the running inference processes and says how it goes. Every child may be
killed; so may the parent, and the same command goes on. Read next:
training/run.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from shmzero.cli.command import run_command
from shmzero.cli.flags import Parser, renamed_words, say, settings_parser, split_help
from shmzero.cli.interrupts import STARTED, Interrupt
from shmzero.cli.terminal import Terminal
from shmzero.cluster.driver import EngineStarter
from shmzero.errors import ConfigError
from shmzero.game.deals import DEALS, DEALS_FROM
from shmzero.matches.words import match_words
from shmzero.training.config import TrainConfig
from shmzero.training.plan import resolve_training
from shmzero.training.presets import TRAIN_PRESETS, read_train_toml
from shmzero.training.progress import TrainProgress
from shmzero.training.run import train

EXAMPLES = """examples:
  python -m shmzero.train runs/smoke                            two minutes on two cores
  python -m shmzero.train runs/evening --preset laptop --minutes 60
  python -m shmzero.train runs/big --preset workstation --device cuda
  python -m shmzero.train runs/broad --deals-from broad         3-8 players, 1-8 cards
  python -m shmzero.train runs/games --whole-games --utility win --cards 7
  python -m shmzero.train runs/mine --config run.toml --seed 7"""


CRITIC_ONLY = (
    "critic_net",
    "critic_learning_rate",
    "importance_cap",
    "redeals",
    "neurd_share",
    "entropy_first",
    "entropy_last",
)
"""Settings that say something only where a critic makes the targets."""


def parser(asked: TrainConfig | None = None, everything: bool = True) -> Parser:
    """The command's parser; `asked`: settings whose help it shows."""
    found = settings_parser(
        "python -m shmzero.train",
        "Trains an agent; RUN is its folder, and an unfinished run is continued.\n"
        "Flags override --deals-from, that overrides --config, and that --preset.",
        EXAMPLES,
        TrainConfig,
        asked,
        resolve_training(asked).dump() if asked else None,
        everything,
    )
    found.usage = "python -m shmzero.train RUN [options]"
    found.add_argument("run", nargs="?", type=Path, metavar="RUN", help="folder of the run")
    found.add_argument(
        "--preset",
        default="smoke",
        metavar="NAME",
        help=f"sets everything: {', '.join(TRAIN_PRESETS)} (default: smoke)",
    )
    found.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file that sets any of these, such as RUN/config.toml"
    )
    found.add_argument("--deals-from", choices=DEALS, help=DEALS_FROM)
    found.add_argument(
        "--json",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="print one JSON object at the end and nothing else on standard output",
    )
    return found


def parse(arguments: list[str] | None) -> tuple[TrainConfig, Path, bool]:
    """(settings, run folder, --json) out of flags over --config over --preset. Raises ConfigError."""
    words, help_wanted = split_help(sys.argv[1:] if arguments is None else arguments)
    flags = vars(parser().parse_args(renamed_words(words, TrainConfig.old_names)))
    run, preset, file, deals, as_json = (flags.pop(name) for name in ("run", "preset", "config", "deals_from", "json"))
    if preset not in TRAIN_PRESETS:
        raise ConfigError(f"preset is {preset!r}; allowed: {', '.join(TRAIN_PRESETS)}")
    default = TRAIN_PRESETS[preset]
    if file:
        default = default.but(**read_train_toml(file, say))
    if deals:
        default = default.but(**DEALS[deals])
    found = default.but(**flags)
    if help_wanted:
        print(parser(found, help_wanted == "all").format_help(), end="")
        raise SystemExit(0)
    if run is None:
        raise ConfigError("RUN is missing: the folder of the run; see --help")
    learning = found.learning
    if found.search.searches() and learning.importance_cap != default.learning.importance_cap:
        raise ConfigError(f"importance_cap is {learning.importance_cap:g} with a search; allowed: with --search 0")
    for name in CRITIC_ONLY:
        value = getattr(learning, name)
        if learning.targets != "critic" and value != getattr(default.learning, name):
            raise ConfigError(f"{name} is {value!r} with targets {learning.targets!r}; allowed: with targets 'critic'")
    return found, run, as_json


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    config, folder, as_json = parse(arguments)
    interrupt = Interrupt()
    with Terminal(TrainProgress.table) as terminal, EngineStarter(config.processes.cluster) as start:
        summary = train(config, folder, terminal.say, terminal.show, lambda: interrupt.asked, STARTED, start)
    print(json.dumps(summary) if as_json else describe(summary))
    return 0 if summary["complete"] else 130


def balance_words(summary: dict[str, Any]) -> str:
    """Which half of the run waited for the other, and what would keep both busy."""
    play, learner = summary["self_play_waits"], summary["learner_waits"]
    ratio = f"--replay-ratio {summary['balanced_replay_ratio']:g} instead of {summary['replay_ratio']:g}"
    if play > learner:
        return (
            f"self-play waited {play:.0%} of the time for the learner, which waited {learner:.0%}: in a new run about "
            f"{ratio} keeps both busy, as does a faster learner (--learner-threads, a smaller --net and --critic-net)"
        )
    return (
        f"the learner waited {learner:.0%} of the time for rounds, self-play {play:.0%}: in a new run about {ratio} "
        "keeps both busy, as does faster self-play (--workers, --device, a smaller --search)"
    )


def describe(summary: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [
        f"{summary['rounds']:,} rounds, {summary['steps']:,} learner steps in {summary['elapsed_s']:.0f} s",
        *map(match_words, summary["matches"]),
    ]
    if summary.get("balanced_replay_ratio"):
        lines.append(balance_words(summary))
    if summary["judge_failures"]:
        lines.append(f"{summary['judge_failures']} processes of matches failed")
    if summary["checkpoint"]:
        lines.append(f"checkpoint {summary['checkpoint']}")
    elif summary["complete"]:
        lines.append("no checkpoint: it was over before anything had been learned")
    if not summary["complete"]:
        lines.append("interrupted: the same command goes on")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
