"""python -m shmzero.selfplay: plays rounds of Blob against itself and records them.

Settings become a Fleet (engine/fleet.py), finished units go into the run folder (records.py), and a line
says how it goes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from shmzero.cli.command import run_command
from shmzero.cli.flags import Parser, renamed_words, say, settings_parser, split_help
from shmzero.cli.interrupts import STARTED, Interrupt, nothing_started
from shmzero.cli.terminal import Terminal
from shmzero.cluster.driver import EngineStarter
from shmzero.engine.config import SelfPlayConfig, read_toml
from shmzero.engine.plan import resolve
from shmzero.engine.run import run
from shmzero.errors import ConfigError
from shmzero.game.bots import OLDER

EXAMPLES = """examples:
  python -m shmzero.selfplay                                    a first run, 100 rounds
  python -m shmzero.selfplay --rounds 2000 --preset medium --out runs/first
  python -m shmzero.selfplay --players 3-6 --cards 1-8 --device cuda --out runs/broad
  python -m shmzero.selfplay --games 20 --cards 7 --evaluator hash
  python -m shmzero.selfplay --config run.toml --seed 7"""


def parser(asked: SelfPlayConfig | None = None, everything: bool = True) -> Parser:
    """The command's parser; `asked`: settings whose help it shows."""
    found = settings_parser(
        "python -m shmzero.selfplay",
        "Plays Blob against itself and records the rounds. No option is required;\nflags override --config.",
        EXAMPLES,
        SelfPlayConfig,
        asked,
        resolve(asked).dump() if asked else None,
        everything,
    )
    found.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file that sets any of these, such as runs/first/config.toml"
    )
    return found


def parse(arguments: list[str] | None) -> SelfPlayConfig:
    """Settings out of flags over --config over defaults. Raises ConfigError."""
    words, help_wanted = split_help(sys.argv[1:] if arguments is None else arguments)
    flags = vars(parser().parse_args(renamed_words(words, SelfPlayConfig.old_names)))
    file = flags.pop("config")
    settings = read_toml(file, say) if file else {}
    if not {"rounds", "games"} <= settings.keys():  # a flag of one overrides the other in the file
        for one, other in (("rounds", "games"), ("games", "rounds")):
            if one in flags:
                settings.pop(other, None)
    found = SelfPlayConfig.of(**settings | flags)
    if found.seats.network() == OLDER:
        raise ConfigError(
            f"opponent_pool names {OLDER!r}, which training runs have; allowed: bots and a checkpoint's file"
        )
    if help_wanted:
        print(parser(found, help_wanted == "all").format_help(), end="")
        raise SystemExit(0)
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    with nothing_started():
        config = parse(arguments)
    folder = config.output.out or Path("runs") / time.strftime("selfplay-%Y%m%d-%H%M%S")
    interrupt = Interrupt()
    with Terminal() as terminal, EngineStarter(config.processes.cluster) as start:
        summary = run(config, folder, terminal.say, terminal.show, lambda: interrupt.asked, STARTED, start)
    print(json.dumps(summary) if config.output.json else describe(summary))
    return 0 if summary["complete"] else 130


def describe(summary: dict[str, Any]) -> str:
    """The summary for people."""
    if summary["new_rounds"] == 0:
        return f"{summary['rounds']} rounds in {summary['records']}"
    first = summary["first_round_s"]
    return (
        f"{summary['new_rounds']} rounds in {summary['seconds']:.1f} s: "
        f"{summary['rounds_per_min']:,.0f} rounds/min, "
        f"{summary['distinct_evaluations_per_s']:,.0f} distinct evaluations/s, "
        f"mean batch {summary['mean_batch_rows']:.0f} rows, "
        f"{summary['simulations_per_decision']:.0f} simulations a decision"
        + (f", first round after {first:.1f} s" if first is not None else "")
        + ("" if summary["complete"] else "\ninterrupted: the same command with the same --out goes on")
        + f"\n{summary['rounds']} rounds in {summary['records']}"
    )


if __name__ == "__main__":
    sys.exit(main())
