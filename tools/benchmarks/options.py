"""Flags that benchmarks share, and where results go: to the screen, and into files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shmzero.cli.flags import Parser, renamed_words
from tools.benchmarks.measure import Result

OLD_NAMES = {"games": "rounds", "opponents": "match_opponents"}
"""Options by the names that they had; these are taken as well, and a line on standard error has the new one."""


class ToolParser(Parser):
    """A Parser that takes flags by their old names, and leaves the words that it was given in `words`."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = with_new_names(sys.argv[1:] if args is None else args)
        given, rest = super().parse_known_args(words, namespace)
        given.words = words
        return given, rest


def with_new_names(words: Sequence[str]) -> list[str]:
    """The words with today's names of flags; says on standard error which old ones were there."""
    found = renamed_words(words, OLD_NAMES)
    for at, word in enumerate(found):
        name, equals, value = word.partition("=")
        if name == "--json" and (equals or names_a_new_file(found[at + 1 : at + 2])):
            found[at] = "--save" + equals + value
            print("note: --json with a file is called --save now", file=sys.stderr)
    return found


def names_a_new_file(words: Sequence[str]) -> bool:
    """Whether the word after --json is the file that it once took, and neither a flag nor what is to be measured."""
    return any(not word.startswith("-") and (word.endswith(".json") or not Path(word).exists()) for word in words)


def output_file(text: str) -> Path:
    """A file to be written at the end, for argparse: refused before the measurement where its folder is missing."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return path


def output_flags(parser: argparse.ArgumentParser) -> None:
    """Add --json and --save FILE, which `put_out` reads."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument(
        "--save", type=output_file, metavar="FILE", help="keep the results, and what they were measured on, as JSON"
    )


def csv_flag(parser: argparse.ArgumentParser, *more: str) -> None:
    """Add --csv FILE, a table of the results; `more`: other names of that flag."""
    parser.add_argument("--csv", *more, dest="csv", type=output_file, metavar="FILE", help="the results as a table")


def quick_flag(sub: argparse.ArgumentParser) -> None:
    """Add --quick."""
    sub.add_argument("--quick", action="store_true", help="shorter, noisier")


def repeats_flag(sub: argparse.ArgumentParser) -> None:
    """Add --repeats N."""
    sub.add_argument("--repeats", type=int, default=3, help="interleaved repeats (default 3)")


def put_out(script: str, given: argparse.Namespace, described: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Print what `script` measured, as lines or with --json as one object; write it where --save says.

    `described` is what `machine` said before the first result was measured.
    """
    benchmark = getattr(given, "name", script)
    whole = as_json(script, benchmark, given, described, results)
    if given.json:
        print(json.dumps(whole), flush=True)
    else:
        for result in results:
            print(result.line(), flush=True)
    if given.save:
        save(given.save, whole)


def as_json(
    script: str, benchmark: str, given: argparse.Namespace, described: Mapping[str, Any], results: Sequence[Result]
) -> dict[str, Any]:
    """All about one measurement; its command without the flags that say where results go."""
    words = list(given.words)
    for flag, length in (("--json", 1), ("--save", 2), ("--csv", 2)):
        while flag in words:
            at = words.index(flag)
            del words[at : at + length]
    settings = {name: str(value) for name, value in vars(given).items() if name not in ("json", "save", "csv", "words")}
    return {
        "benchmark": benchmark,
        "command": shlex.join([f"tools/{script}.py", *words]),
        "machine": described,
        "settings": settings,
        "results": [dataclasses.asdict(result) for result in results],
    }


def save(path: Path, whole: Mapping[str, Any]) -> None:
    """Write a measurement as `report` reads it."""
    path.write_text(json.dumps(whole, indent=1) + "\n")
