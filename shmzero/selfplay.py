"""python -m shmzero.selfplay: plays rounds of Blob against itself and records them.

Settings become a Fleet (engine/fleet.py), finished units go into the run folder (records.py), and a line
says how it goes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shmzero.cli.command import run_command
from shmzero.cli.flags import parse_flags
from shmzero.cli.interrupts import STARTED, Interrupt, nothing_started
from shmzero.cli.terminal import Terminal
from shmzero.engine.config import SelfPlayConfig, read_toml
from shmzero.engine.run import run
from shmzero.errors import ConfigError
from shmzero.game.bots import OLDER

EXAMPLES = """examples:
  python -m shmzero.selfplay                                    a first run, 100 rounds
  python -m shmzero.selfplay --rounds 2000 --preset medium --out runs/first
  python -m shmzero.selfplay --players 3-6 --cards 1-8 --device cuda --out runs/broad
  python -m shmzero.selfplay --games 20 --cards 7 --evaluator hash
  python -m shmzero.selfplay --config run.toml --seed 7"""


@dataclass(frozen=True)
class _Command(SelfPlayConfig):
    config: Path | None = None
    """TOML file that sets any of these; for example a run folder's: --config runs/first/config.toml."""


def parse(arguments: list[str] | None) -> SelfPlayConfig:
    """Settings out of flags over --config over defaults. Raises ConfigError."""
    import tyro

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--rounds", "--games"):
        first.add_argument(name, nargs="?")
    given, _ = first.parse_known_args(arguments)
    settings: dict[str, Any] = {}
    if given.config:
        settings = {"config": Path(given.config)} | read_toml(Path(given.config))
        if not {"rounds", "games"} <= settings.keys():  # a flag of one overrides the other in the file
            if given.games is not None:
                settings.pop("rounds", None)
            if given.rounds is not None:
                settings.pop("games", None)
    default = _Command(**settings)
    command = parse_flags(
        _Command,
        prog="python -m shmzero.selfplay",
        description="Plays Blob against itself and records the rounds. No option is required; "
        "flags override --config.\n\n" + EXAMPLES,
        default=default,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    found = SelfPlayConfig(**{f.name: getattr(command, f.name) for f in dataclasses.fields(SelfPlayConfig)})
    if found.other_network() == OLDER:
        raise ConfigError(f"others names {OLDER!r}, which training runs have; allowed: bots and a checkpoint's file")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    with nothing_started():
        config = parse(arguments)
    folder = config.out or Path("runs") / time.strftime("selfplay-%Y%m%d-%H%M%S")
    interrupt = Interrupt()
    with Terminal() as terminal:
        summary = run(config, folder, terminal.say, terminal.show, lambda: interrupt.asked, STARTED)
    print(json.dumps(summary) if config.json else describe(summary))
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
