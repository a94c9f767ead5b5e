"""The frame of a command: errors into one line and an exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable

from shmzero.cli.interrupts import leave, merge_double_interrupts
from shmzero.cli.standard_files import Unfailing, open_standard_files, output, output_failure
from shmzero.errors import ConfigError, ShmzeroError


class Ending:
    """How this process ends after its command."""

    is_at_once = False
    """Set where a library's threads would crash a process that ends in the usual way."""


def run_command(body: Callable[[], int]) -> int:
    """`body`'s exit code: 0 done, 130 interrupted; or what an error makes of it, said in one line on
    standard error: 2 the user's (ConfigError), 1 the environment's (every other ShmzeroError).

    Unless `body` has an Interrupt, a first Ctrl-C raises KeyboardInterrupt in it and a second ends the process;
    SIGTERM and SIGHUP do so at once.
    """
    code = _exit_code(body)
    if Ending.is_at_once:
        for file in (sys.stdout, sys.stderr):
            file.flush()
        os._exit(code)
    return code


def _exit_code(body: Callable[[], int]) -> int:
    open_standard_files()  # for a command that is no module of this package
    if sys.__stderr__ is not None and sys.stderr is sys.__stderr__:
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(Unfailing()), sys.__stderr__.encoding, "backslashreplace", line_buffering=True
        )
    try:
        if signal.getsignal(signal.SIGINT) in (leave, signal.default_int_handler):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            merge_double_interrupts()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="shmzero")  # paths are bytes, in whatever language
        try:
            return body()
        finally:
            sys.stdout.flush()
    except OSError:
        failure = output_failure()
        if failure is None:
            raise
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, output().fileno())  # for what is still to be flushed
        if failure.errno != errno.EPIPE:  # a reader, `head` say, that has seen enough is no error
            print(f"error: standard output cannot be written: {failure.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ShmzeroError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
