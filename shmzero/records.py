"""`python -m shmzero.records`: shows the records of a run folder; and `Records`, their reader, for programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from shmzero import _core
from shmzero.cli.command import run_command
from shmzero.cli.flags import Layout, Parser
from shmzero.errors import ConfigError, RecordError
from shmzero.game.notation import show
from shmzero.runs.records import Records

__all__ = ["Records", "main"]


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = Parser(
        prog="python -m shmzero.records",
        usage="python -m shmzero.records path [options]",
        description="Shows the records of a self-play run.",
        epilog="examples:\n  python -m shmzero.records runs/first --show 3",
        formatter_class=Layout,
    )
    parser.add_argument("path", type=Path, help="run folder or rounds.sqlite")
    rounds = parser.add_argument_group("rounds options")
    rounds.add_argument(
        "--first",
        type=int,
        default=0,
        metavar="N",
        help="Number of the first round to show. (default: %(default)s)",
    )
    rounds.add_argument("--show", type=int, default=1, metavar="N", help="Rounds to show. (default: %(default)s)")
    rounds.add_argument(
        "--json", action="store_true", help="Print one JSON object and nothing else on standard output."
    )
    given = parser.parse_args(arguments)
    for name, value in (("show", given.show), ("first", given.first)):
        if not 0 <= value < 2**63:
            raise ConfigError(f"{name} is {value}; allowed: 0 to {2**63 - 1}")
    with Records(given.path) as records:
        _print(records, list(records.read(given.first, given.show)), given.json)
    return 0


def _print(records: Records, shown: list[bytes], as_json: bool) -> None:
    """Print a head and the rounds `shown`. Raises RecordError for bytes that are no round."""
    mean_bytes = sum(map(len, shown)) / len(shown) if shown else 0.0
    try:
        if as_json:
            rounds = [_core.decode_record(record) for record in shown]
            print(json.dumps({"rounds": len(records), "settings": records.settings(), "shown": rounds}))
        else:
            head = f"{records.path}: {len(records)} rounds, {mean_bytes:.0f} bytes a record"
            print("\n".join([head, *map(show, shown)]))
    except ValueError as error:
        raise RecordError(f"{records.path} holds what is no round: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
