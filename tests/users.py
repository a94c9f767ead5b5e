"""Systems that lack something: real ones."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

MEMFD_CREATE = 319
"""Its number on x86-64."""


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
