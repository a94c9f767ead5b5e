"""The command `python -m shmzero.serve`: an InferenceServer in a process of its own."""

from __future__ import annotations

import json
import sys

from shmzero.cli.command import run_command
from shmzero.cli.flags import parse_flags
from shmzero.cli.interrupts import end_at_interrupt
from shmzero.cli.standard_files import print_result, put_stdout_aside
from shmzero.service.config import ServeConfig
from shmzero.service.run import run

EXAMPLES = """Examples:
  python -m shmzero.serve
  python -m shmzero.serve --name mine --model my_nets:make --state-dim 40 --action-dim 7 --value-dim 3 --stats

In any program:
  policies, values = shmzero.Client("mine").evaluate_many(states, masks)"""


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    import tyro

    config = parse_flags(
        ServeConfig,
        prog="python -m shmzero.serve",
        description="Serves a model to every program of this machine over shared memory. Ctrl-C ends it.\n\n"
        + EXAMPLES,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    config.check()
    put_stdout_aside()
    end_at_interrupt()
    summary = run(config)
    if config.json:
        print_result(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
