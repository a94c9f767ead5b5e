"""The standard files of a command: opened where they are closed, and free of what others print."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import Any, TextIO


def open_standard_files() -> None:
    """Open those of the files 0 to 2 that this process was started without, as /dev/null.

    Otherwise whatever is opened next gets their numbers, and what is printed goes into a segment or a socket.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(fd, True)
        if getattr(sys, name) is None:  # what Python makes of a closed file
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115


class Unfailing(io.RawIOBase):
    """Standard error as far as it can be written: a terminal that is gone or a full disk ends no work."""

    def fileno(self) -> int:
        return 2

    def isatty(self) -> bool:
        return os.isatty(2)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            os.write(2, data)
        return len(data)


_aside: TextIO | None = None
"""The standard output, where it has been put aside."""


def put_stdout_aside() -> None:
    """Keep the standard output for what `print_result` prints, and nothing else.

    What other people's code prints in this process, be it from C, and in processes that it starts, goes to
    standard error; for as long as this process lives.
    """
    global _aside
    sys.stdout.flush()
    _aside = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)


def output() -> TextIO:
    """Where results go: the standard output, wherever it is now."""
    return _aside or sys.stdout


def print_result(line: str) -> None:
    """Print what this command was asked for on its standard output. Raises OSError where that fails."""
    print(line, file=output(), flush=True)


def _bytes_or_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for text that an encoding lacks: the bytes that a path had, or else an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error("shmzero", _bytes_or_escapes)


def output_failure() -> OSError | None:
    """Why the standard output takes no further line, if that is so: an error of another file is not its."""
    try:
        print_result("")
    except OSError as failure:
        return failure
    return None
