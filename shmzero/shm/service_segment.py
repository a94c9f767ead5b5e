"""Segments of services: a name in /dev/shm, and one living server at a time.

Whoever serves holds a lock on the file. A dead server's file stays for a successor, or for
`rm /dev/shm/shmzero-NAME`; if nobody chose its name, the next server to start removes it.
"""

from __future__ import annotations

import os
import time
import weakref
from typing import ClassVar

from shmzero import _core
from shmzero.errors import ConfigError, SegmentCorrupt, SegmentError
from shmzero.shm.names import FOLDER, NotOurs, create_file, inode_of, lock_file, open_file, service_path, unlink_file
from shmzero.shm.segment import allocate, attach
from shmzero.shm.sizes import SegmentSizes

TRIES = 50
TRY_S = 0.01
"""How often, and how far apart, a start asks for a file that another process locks or replaces."""


class ServiceSegment:
    """A named segment and the life lock on it, as its server holds them.

    Exactly one living process serves a name. A dead predecessor's segment of the same sizes is taken
    over with the requests in it; any other is unlinked, and whoever waits in it finds the new one.
    """

    _all: ClassVar[weakref.WeakSet[ServiceSegment]] = weakref.WeakSet()

    def __init__(self, name: str, sizes: SegmentSizes) -> None:
        """Raises ConfigError where a living server or another user has the name, SegmentError where there
        is no room or no /dev/shm that this user may write to."""
        self.path = service_path(name)
        self.fd = -1
        self._pid = os.getpid()
        self.first_version = 0
        """The version of the weights to begin with. It is above whatever a predecessor that died answered with."""
        tries = 1
        while (obstacle := self._take(name, sizes)) is not None:
            if tries == TRIES:
                raise obstacle
            tries += 1
            time.sleep(TRY_S)
        ServiceSegment._all.add(self)

    def _take(self, name: str, sizes: SegmentSizes) -> Exception | None:
        """Try once to become the server. Returns what another process may soon be done with, raises the rest."""
        replaced = SegmentError(f"service {name!r} cannot be served: {FOLDER}{self.path} is replaced all the time")
        fd = create_file(self.path)
        fresh = fd is not None
        if fd is None:
            try:
                fd = open_file(self.path)
            except NotOurs as error:
                raise ConfigError(f"service {name!r} cannot be served: {error}") from None
        if fd is None:
            return replaced
        try:
            if not lock_file(fd):
                return ConfigError(f"service {name!r} is being served by {_holder(fd)}")
            if inode_of(self.path) != os.fstat(fd).st_ino:
                return replaced
            if not fresh:
                self.first_version = max(self.first_version, _next_version(fd))
            try:
                segment = allocate(fd, sizes) if fresh else _predecessors(fd, sizes)
                if segment is not None:
                    self.epoch = segment.open_service(_core.own_identity())
                    self.segment, self.fd = segment, fd
                    return None
            except SegmentCorrupt:
                pass  # a predecessor's that cannot be gone on with
            unlink_file(fd, self.path)
            return replaced
        except BaseException:
            if fresh:
                unlink_file(fd, self.path)
            raise
        finally:
            if self.fd != fd:
                os.close(fd)

    def close(self) -> None:
        """Leave on purpose: tell the clients, remove the name, then give up the lock."""
        if self.fd < 0 or os.getpid() != self._pid:
            return
        self.segment.close_service()
        try:
            unlink_file(self.fd, self.path)
        finally:
            os.close(self.fd)
            self.fd = -1

    def _forget(self) -> None:
        """Close the file in the child of a fork: the lock is the parent's, and must not outlive it through us."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _forget_all() -> None:
    for service in list(ServiceSegment._all):
        service._forget()


os.register_at_fork(after_in_child=_forget_all)


def find_service(name: str) -> tuple[_core.Segment, int] | None:
    """The segment of a service and its inode; None where there is none.

    Raises SegmentError where it may not be opened, is another user's, or there is no /dev/shm;
    SegmentCorrupt where it is not (yet) a segment.
    """
    try:
        fd = open_file(service_path(name))
    except NotOurs as error:
        raise SegmentError(f"service {name!r} cannot be used: {error}") from None
    if fd is None:
        return None
    try:
        return attach(fd), os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _predecessors(fd: int, sizes: SegmentSizes) -> _core.Segment | None:
    """A dead predecessor's segment, or None where it has other sizes or cannot be used."""
    try:
        segment = attach(fd)
    except SegmentCorrupt:
        return None
    return segment if SegmentSizes.of(segment) == sizes and not segment.service_closed else None


def _next_version(fd: int) -> int:
    """The version of weights after the last that a dead server answered with; 0 where that is not to be known."""
    try:
        return int(attach(fd).server_counters(0)["version"] + 1) % 2**32
    except SegmentCorrupt:
        return 0


def _holder(fd: int) -> str:
    """A text that says who holds the lock on a service's file, and what to do about it."""
    try:
        owner = attach(fd).service_owner
    except SegmentError:
        owner = 0
    if owner == 0 or _core.life_of(owner) == "dead":  # it has the lock, and not written yet who it is
        return "another process; choose another name, or end that one"
    pid = _core.identity_pid(owner)
    if pid == os.getpid():
        return f"process {pid}, which is this one; close() that server first, or choose another name"
    return f"process {pid}; choose another name, or end that one"
