"""Other users of the machine, and systems that lack something: real ones, where root may make them."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe

import pytest

ALICE, MALLORY = 64001, 64002
"""Two users that nobody is."""
MEMFD_CREATE = 319
"""Its number on x86-64."""


@contextmanager
def acting_as(uid: int, body: Callable[[], Iterator[object]]) -> Iterator[Callable[[], object]]:
    """`body` in a forked child that is that user. Each call goes on to its next yield and returns what that gives.

    Raises what the body raises; AssertionError where the child was killed.
    """
    if os.geteuid() != 0:
        pytest.skip("only root may become two other users")
    ours, theirs = Pipe()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            for given in body():
                theirs.recv()
                theirs.send(given)
        except EOFError:
            pass
        except BaseException as error:
            theirs.recv()
            theirs.send(error)
        finally:
            os._exit(0)
    theirs.close()

    def go_on() -> object:
        try:
            ours.send(None)
            given = ours.recv()
        except (EOFError, OSError):
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            raise AssertionError(f"user {uid} was killed by signal {ended and ended.si_status}") from None
        if isinstance(given, BaseException):
            raise given
        return given

    try:
        yield go_on
    finally:
        ours.close()
        os.waitpid(pid, 0)


def forbid_memfd() -> None:
    """From here on this process and its children are on a kernel without memfd_create: a seccomp filter says so."""
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOTSUP, "the filter is written for x86-64")
    filters = b"".join(
        struct.pack("HBBI", *line)
        for line in (
            (0x20, 0, 0, 0),  # load the number of the system call
            (0x15, 0, 1, MEMFD_CREATE),  # unless it is this one, skip a line
            (0x06, 0, 0, 0x00050000 | errno.ENOSYS),
            (0x06, 0, 0, 0x7FFF0000),  # allowed
        )
    )
    lines = ctypes.create_string_buffer(filters)
    program = struct.pack("HxxxxxxP", 4, ctypes.addressof(lines))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((38, 1, 0, 0, 0), (22, 2, ctypes.c_char_p(program), 0, 0)):  # no new privileges; the filter
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "the system call filter is not taken")
