"""Flags that benchmarks share, and the files that results are kept in."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks.measure import Result


def output_file(text: str) -> Path:
    """A file to be written at the end, for argparse: refused before the measurement where its folder is missing."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return path


def json_flag(parser: argparse.ArgumentParser) -> None:
    """Add --json FILE, where `keep` writes."""
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="keep the results and what they were measured on"
    )


def csv_flag(parser: argparse.ArgumentParser, *more: str) -> None:
    """Add --csv FILE, a table of the results; `more`: other names of that flag."""
    parser.add_argument("--csv", *more, dest="csv", type=output_file, metavar="FILE", help="the results as a table")


def keep(
    path: Path, benchmark: str, described: dict[str, Any], settings: dict[str, Any], results: Sequence[Result]
) -> None:
    """Write results as JSON; `described` is what `machine` said before the first of them was measured."""
    acted = {name: str(value) for name, value in settings.items() if name not in ("json", "csv")}
    lines = [dataclasses.asdict(result) for result in results]
    whole = {"benchmark": benchmark, "machine": described, "settings": acted, "results": lines}
    path.write_text(json.dumps(whole, indent=1) + "\n")


def quick_flag(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--quick", action="store_true", help="shorter, noisier")


def repeats_flag(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--repeats", type=int, default=3, help="interleaved repeats (default 3)")
