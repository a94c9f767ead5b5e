"""What the commands share: signals, standard files, flags into settings, errors into one line and an exit code.

The package imports this before anything else.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import io
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, TypeVar

from shmzero.errors import ConfigError, ShmzeroError

T = TypeVar("T")

STARTED = time.monotonic()
"""When this process began to load the package. Its own age will not do: env/run, which becomes the
command, may have spent a minute on making the environment."""
DOUBLE_S = 0.3
"""A Ctrl-C that follows another so soon is the same wish: terminals, shells and process groups send doubles."""


def leave(number: int, frame: FrameType | None) -> None:
    """End at once, without a traceback: nothing has been started yet."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def is_command() -> bool:
    """Whether this process is `python -m shmzero...` and no program that merely imports shmzero, which keeps its
    signals and files as they are."""
    return any(
        flag == "-m" and module.partition(".")[0] == "shmzero"
        for flag, module in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    )


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


class _Unfailing(io.RawIOBase):
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


def take_over_ctrl_c() -> None:
    """Have a Ctrl-C call `leave` until the command runs, where this process is a command."""
    if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


if is_command():
    open_standard_files()  # before anything else opens a file
take_over_ctrl_c()


@contextlib.contextmanager
def nothing_started() -> Iterator[None]:
    """Have a command's Ctrl-C call `leave` again within this block.

    A library that is loaded or looks at types may swallow a KeyboardInterrupt.
    """
    before = signal.getsignal(signal.SIGINT)
    take_over_ctrl_c()
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is leave:
            signal.signal(signal.SIGINT, before)
            _merge_double_interrupts()


class Interrupt:
    """The wish to stop: a Ctrl-C, a SIGTERM (as often as it comes: timeout(1) sends two) or a SIGHUP asks for it.

    A second Ctrl-C ends the process at once, whatever that waits for; one within DOUBLE_S of the first is no
    second. A SIGHUP that is ignored from the start, as nohup(1) has it, stays ignored. The signals are taken over
    by the process's main thread, for as long as the process lives.
    """

    def __init__(self) -> None:
        self.asked = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)
        _merge_double_interrupts()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        os.eventfd_write(self._bell, 1)

    def wait(self, seconds: float) -> bool:
        """Wait until the wish comes, at most so long; return whether it has come."""
        bell = select.poll()
        bell.register(self._bell, select.POLLIN)
        bell.poll(seconds * 1e3)
        return self.asked


def end_at_interrupt() -> None:
    """Have a Ctrl-C end this process as SIGTERM and SIGHUP do, by the kernel and at once, until there is an Interrupt.

    This is for other people's code, which may block in C or catch every exception, before anything of ours is there
    that could be left behind.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _merge_double_interrupts() -> None:
    """Python's own handler of SIGINT, which has just been set, gets only the first."""
    from shmzero import _core  # not before Ctrl-C is taken over

    _core.merge_double_interrupts(DOUBLE_S)


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


def print_result(line: str) -> None:
    """Print what this command was asked for on its standard output. Raises OSError where that fails."""
    print(line, file=_aside or sys.stdout, flush=True)


def file_stamp(path: Path | None) -> tuple[int, int] | None:
    """Changes when a file is written or replaced; None where there is none."""
    try:
        status = path.stat() if path else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ino) if status else None


def _bytes_or_escapes(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for text that an encoding lacks: the bytes that a path had, or else an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error("shmzero", _bytes_or_escapes)


def run_command(body: Callable[[], int]) -> int:
    """`body`'s exit code: 0 done, 130 interrupted; or what an error makes of it, said in one line on
    standard error: 2 the user's (ConfigError), 1 the environment's (every other ShmzeroError).

    Unless `body` has an Interrupt, a first Ctrl-C raises KeyboardInterrupt in it and a second ends the process;
    SIGTERM and SIGHUP do so at once.
    """
    open_standard_files()  # for a command that is no module of this package
    if sys.__stderr__ is not None and sys.stderr is sys.__stderr__:
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Unfailing()), sys.__stderr__.encoding, "backslashreplace", line_buffering=True
        )
    try:
        if signal.getsignal(signal.SIGINT) in (leave, signal.default_int_handler):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _merge_double_interrupts()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="shmzero")  # paths are bytes, in whatever language
        try:
            return body()
        finally:
            sys.stdout.flush()
    except OSError:
        failure = _output_failure()
        if failure is None:
            raise
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, (_aside or sys.stdout).fileno())  # for what is still to be flushed
        if failure.errno != errno.EPIPE:  # a reader, `head` say, that has seen enough is no error
            print(f"error: standard output cannot be written: {failure.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ShmzeroError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def _output_failure() -> OSError | None:
    """Why the standard output takes no further line, if that is so: an error of another file is not its."""
    try:
        print_result("")
    except OSError as failure:
        return failure
    return None


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
