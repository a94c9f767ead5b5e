"""Flags into settings, and what is wrong with them in one line."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from shmzero.cli.interrupts import nothing_started
from shmzero.errors import ConfigError

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def parse_flags(kind: Callable[..., T], **options: Any) -> T:
    """tyro.cli(kind, **options). `--help` still prints and exits; bad flags raise ConfigError."""
    said = io.StringIO()
    try:
        with nothing_started(), contextlib.redirect_stderr(said):
            import tyro

            settings: T = tyro.cli(kind, **options)
            return settings
    except SystemExit as end:
        if not end.code:
            raise
        cause: BaseException | None = end
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__ or cause.__context__
        raise ConfigError(str(cause) if cause else one_line(said.getvalue())) from None


def one_line(box: str) -> str:
    """The text that tyro draws in a box, as one line: the problem, without types and hints at --help."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    framed = any(line.startswith("╭") for line in lines)  # the title is in the frame, else above a rule
    text = "\n".join(line for line in lines if not line.startswith(("╭", "╰")))
    parts = re.split(r"^[─-]+$", text, flags=re.MULTILINE)
    problem = " ".join(parts[0 if framed or len(parts) == 1 else 1].split())
    problem = problem.partition(" Got errors:")[0]
    problem = re.sub(
        r"no type matching (?:\{None\}\|)?(\S+) could be instantiated from \['(.*)'\]", r"'\2' is no \1", problem
    )
    meant = re.search(r"Perhaps you meant:\s+(--[\w-]+)", text)
    return problem + (f"; perhaps {meant[1]}" if meant else "")
