"""Ctrl-C, SIGTERM and SIGHUP, from the first moment of a command on."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from types import FrameType

from shmzero import is_command
from shmzero.cli.standard_files import open_standard_files

STARTED = time.monotonic()
"""When this process began to load the package. Its own age will not do: env/run, which becomes the
command, may have spent a minute on making the environment."""
DOUBLE_S = 0.3
"""A Ctrl-C that follows another so soon is the same wish: terminals, shells and process groups send doubles."""


def leave(number: int, frame: FrameType | None) -> None:
    """End at once, without a traceback: nothing has been started yet."""
    os.write(2, b"interrupted\n")
    os._exit(130)


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
            merge_double_interrupts()


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
        merge_double_interrupts()

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


def merge_double_interrupts() -> None:
    """Python's own handler of SIGINT, which has just been set, gets only the first."""
    from shmzero import _core  # not before Ctrl-C is taken over

    _core.merge_double_interrupts(DOUBLE_S)
