"""The command `python -m shmzero.serve`: an InferenceServer in a process of its own."""

from __future__ import annotations

import json
import sys

from shmzero.cli.command import run_command
from shmzero.cli.flags import Parser, renamed_words, settings_parser, split_help
from shmzero.cli.interrupts import end_at_interrupt
from shmzero.cli.standard_files import print_result, put_stdout_aside
from shmzero.service.config import ServeConfig
from shmzero.service.run import run

EXAMPLES = """examples:
  python -m shmzero.serve
  python -m shmzero.serve --name mine --model my_nets:make --state-dim 40 --action-dim 7 --value-dim 3 --stats

In any program:
  policies, values = shmzero.Client("mine").evaluate_many(states, masks)"""


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit codes: see run_command."""
    return run_command(lambda: _main(arguments))


def parse(arguments: list[str] | None) -> ServeConfig:
    """Settings out of flags over defaults. Raises ConfigError."""

    def parser(asked: ServeConfig | None = None, everything: bool = True) -> Parser:
        return settings_parser(
            "python -m shmzero.serve",
            "Serves a model to every program of this machine over shared memory.\nCtrl-C ends it.",
            EXAMPLES,
            ServeConfig,
            asked,
            asked.resolved().flat() if asked else None,
            everything,
        )

    words, help_wanted = split_help(sys.argv[1:] if arguments is None else arguments)
    found = ServeConfig.of(**vars(parser().parse_args(renamed_words(words, ServeConfig.old_names))))
    if help_wanted:
        print(parser(found, help_wanted == "all").format_help(), end="")
        raise SystemExit(0)
    return found


def _main(arguments: list[str] | None) -> int:
    config = parse(arguments)
    config.check_devices()
    put_stdout_aside()
    end_at_interrupt()
    summary = run(config)
    if config.json:
        print_result(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
