"""python -m shmzero.train RUN: self-play, learning and matches as one pipeline on one machine.

The parent owns the run folder: it commits finished rounds, hands them to the learner process, swaps
the learner's weights into the running inference processes and says how it goes. Every child may be
killed; so may the parent, and the same command goes on. Read next:
training/run.py.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from shmzero.cli.command import run_command
from shmzero.cli.flags import Parser, parse_flags
from shmzero.cli.interrupts import STARTED, Interrupt
from shmzero.cli.terminal import Terminal
from shmzero.errors import ConfigError
from shmzero.game.deals import DEALS
from shmzero.matches.words import match_words
from shmzero.training.config import TrainConfig
from shmzero.training.presets import TRAIN_PRESETS, read_train_toml
from shmzero.training.progress import TrainProgress
from shmzero.training.run import train

EXAMPLES = """examples:
  python -m shmzero.train runs/smoke                            two minutes on two cores
  python -m shmzero.train runs/evening --preset laptop --minutes 60
  python -m shmzero.train runs/big --preset workstation --device cuda
  python -m shmzero.train runs/broad --deals-from broad         3-8 players, 1-8 cards
  python -m shmzero.train runs/games --games --utility win --cards 7
  python -m shmzero.train runs/mine --config run.toml --seed 7"""


def parse(arguments: list[str] | None) -> tuple[TrainConfig, Path, bool]:
    """(settings, run folder, --json) out of flags over --config over --preset. Raises ConfigError."""
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="smoke")
    first.add_argument("--config", type=Path)
    first.add_argument("--deals-from", choices=DEALS)
    given, rest = first.parse_known_args(arguments)
    if given.preset not in TRAIN_PRESETS:
        raise ConfigError(f"preset is {given.preset!r}; allowed: {', '.join(TRAIN_PRESETS)}")
    default = TRAIN_PRESETS[given.preset]
    if given.config:
        default = dataclasses.replace(default, **read_train_toml(given.config))
    if given.deals_from:
        default = dataclasses.replace(default, **DEALS[given.deals_from])

    def command(
        run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
        settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = default,
        json: bool = False,
    ) -> tuple[TrainConfig, Path, bool]:
        """Trains an agent; RUN is its folder, an unfinished run there is continued.

        Args:
            run: Run folder.
            settings: Settings.
            json: Print one JSON object at the end and nothing else on standard output.
        """
        return settings, run, json

    found = parse_flags(
        command,
        prog="python -m shmzero.train",
        description="Trains an agent; RUN is its folder, and an unfinished run there is continued. "
        f"--preset {{{','.join(TRAIN_PRESETS)}}} sets everything (default: smoke), --config FILE.toml "
        "any of it, flags override both. --deals-from plan|broad sets players and cards: "
        + "; ".join(f"{name} {deals['players']} players, {deals['cards']} cards" for name, deals in DEALS.items())
        + ".\n\n"
        + EXAMPLES,
        args=rest,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if found[0].searches() and found[0].importance_cap != default.importance_cap:
        raise ConfigError(f"importance_cap is {found[0].importance_cap:g} with a search; allowed: with --search 0")
    for name in ("critic_net", "critic_learning_rate", "importance_cap", "redeals", "neurd_share", "entropy_first",
                 "entropy_last"):  # fmt: skip
        value = getattr(found[0], name)
        if found[0].targets != "critic" and value != getattr(default, name):
            raise ConfigError(f"{name} is {value!r} with targets {found[0].targets!r}; allowed: with targets 'critic'")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    config, folder, as_json = parse(arguments)
    interrupt = Interrupt()
    with Terminal(TrainProgress.table) as terminal:
        summary = train(config, folder, terminal.say, terminal.show, lambda: interrupt.asked, STARTED)
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
