"""python -m shmzero: lists the commands."""

from __future__ import annotations

import sys

from shmzero.cli.command import run_command
from shmzero.cli.flags import Parser

COMMANDS = {
    "selfplay": "plays rounds of Blob against itself and records them",
    "train": "trains an agent: self-play, learning and matches at once",
    "arena": "plays matches between agents, and rates them",
    "serve": "serves a model to every program of this machine",
    "records": "shows recorded rounds",
    "plot": "draws a training run",
}
"""The commands, with what each does."""


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    Parser(prog="python -m shmzero", description="Lists the commands.").parse_args(arguments)
    lines = [f"  python -m shmzero.{name:<10} {does}" for name, does in COMMANDS.items()]
    print("\n".join(["Commands; each has --help:", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
