"""Makes and finds segments: names, owners, room, life locks. The layout is csrc/shm_layout.h.

A private segment, of a run or a BatchedEvaluator, is a file in memory without a name, sealed against
other sizes. A service keeps a name in /dev/shm, where other users may put files as well: what is opened
there is looked at first, and only a regular file of this user that nobody else may open is used, locked
or removed. Whoever serves holds a lock on the file, and a file that nobody holds is a dead leftover: where
somebody chose its name it stays for a successor, or for `rm /dev/shm/shmzero-NAME`; others a start removes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import posix_ipc

from shmzero import _core
from shmzero.errors import ConfigError, SegmentCorrupt, SegmentError

PREFIX = "/shmzero-"
UNNAMED = re.compile(PREFIX + r"(?:[0-9]+-[0-9a-f]{16}|unnamed-[0-9]+-[0-9a-f]{8})")
"""Names that nobody chose: those of `nameless_file` and of `unnamed_service`."""
FOLDER = "/dev/shm"
TRIES = 50
TRY_S = 0.01
"""How often, and how far apart, a start asks for a file that another process locks or replaces."""
CACHE = ("active_file", "inactive_file")
"""Entries of a control group's memory.stat that count memory which the kernel gives up before it kills."""


class NotOurs(SegmentError):
    """A file under our prefix that another user made, may open, or that is no file at all."""


@dataclass
class PrivateSegment:
    """A mapped segment without a name; children inherit `fd`. Close it when they are gone."""

    segment: _core.Segment
    fd: int

    def close(self) -> None:
        os.close(self.fd)


def create_private(
    servers: int,
    workers: int,
    slots: int,
    rows: int,
    state_dim: int = _core.NUM_FEATURES,
    action_dim: int = _core.NUM_ACTIONS,
    value_dim: int = 1,
    wire: str = "float16",
) -> PrivateSegment:
    """Allocate and map a segment of `rows` rows a slot, in memory that has no name.

    The room is really allocated: where there is too little, this raises SegmentError, and nothing dies
    of it later. What others left who were killed is removed first.
    """
    sweep_leftovers()
    try:
        fd = nameless_file("shmzero-segment")
    except OSError as error:
        raise SegmentError(f"memory for a segment cannot be had: {error.strerror}") from None
    try:
        segment = _allocate(fd, servers, workers, slots, rows, state_dim, action_dim, value_dim, wire)
    except BaseException:
        os.close(fd)
        raise
    return PrivateSegment(segment, fd)


def nameless_file(label: str) -> int:
    """The descriptor of a new, empty file in memory without a name. `label` is what /proc shows for it.

    Where the kernel or a sandbox has no memfd_create, it is a file of /dev/shm whose name goes at once.
    Raises OSError where there are no descriptors left, SegmentError where there is no such /dev/shm either.
    """
    try:
        return _core.memory_file(label)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
            raise
    path = f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    fd = _create(path)
    assert fd is not None, path
    _unlink(fd, path)
    return fd


class ServiceSegment:
    """A named segment and the life lock on it, as its server holds them.

    Exactly one living process serves a name. A dead predecessor's segment of the same sizes is taken
    over with the requests in it; any other is unlinked, and whoever waits in it finds the new one.
    """

    _all: ClassVar[weakref.WeakSet[ServiceSegment]] = weakref.WeakSet()

    def __init__(
        self, name: str, blocks: int, rows: int, state_dim: int, action_dim: int, value_dim: int, wire: str
    ) -> None:
        """Raises ConfigError where a living server or another user has the name, SegmentError where there
        is no room or no /dev/shm that this user may write to."""
        self.path = service_path(name)
        self.fd = -1
        self._pid = os.getpid()
        self.first_version = 0
        """The version of the weights to begin with. It is above whatever a predecessor that died answered with."""
        sizes = (1, blocks, 1, rows, state_dim, action_dim, value_dim, wire)
        tries = 1
        while (obstacle := self._take(name, sizes)) is not None:
            if tries == TRIES:
                raise obstacle
            tries += 1
            time.sleep(TRY_S)
        ServiceSegment._all.add(self)

    def _take(self, name: str, sizes: tuple[int, int, int, int, int, int, int, str]) -> Exception | None:
        """Try once to become the server. Returns what another process may soon be done with, raises the rest."""
        replaced = SegmentError(f"service {name!r} cannot be served: {FOLDER}{self.path} is replaced all the time")
        fd = _create(self.path)
        fresh = fd is not None
        if fd is None:
            try:
                fd = _open(self.path)
            except NotOurs as error:
                raise ConfigError(f"service {name!r} cannot be served: {error}") from None
        if fd is None:
            return replaced
        try:
            if not _lock(fd):
                return ConfigError(f"service {name!r} is being served by {_holder(fd)}")
            if inode_of(self.path) != os.fstat(fd).st_ino:
                return replaced
            if not fresh:
                self.first_version = max(self.first_version, _next_version(fd))
            try:
                segment = _allocate(fd, *sizes) if fresh else _same(fd, *sizes)
                if segment is not None:
                    self.epoch = segment.open_service(_core.own_identity())
                    self.segment, self.fd = segment, fd
                    return None
            except SegmentCorrupt:
                pass  # a predecessor's that cannot be gone on with
            _unlink(fd, self.path)
            return replaced
        except BaseException:
            if fresh:
                _unlink(fd, self.path)
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
            _unlink(self.fd, self.path)
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


def service_path(name: str) -> str:
    """The name in shared memory of a service. Raises ConfigError for one that cannot be."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise ConfigError(f"service name is {name!r}; allowed: up to 100 letters, digits, _ . and -")
    return PREFIX + name


def unnamed_service() -> str:
    """A fresh name for a service that was given none. Nobody starts another server under it, so what
    is left of one that was killed is removed by the next start."""
    return f"unnamed-{os.getpid()}-{secrets.token_hex(4)}"


def find_service(name: str) -> tuple[_core.Segment, int] | None:
    """The segment of a service and its inode; None where there is none.

    Raises SegmentError where it may not be opened, is another user's, or there is no /dev/shm;
    SegmentCorrupt where it is not (yet) a segment.
    """
    try:
        fd = _open(service_path(name))
    except NotOurs as error:
        raise SegmentError(f"service {name!r} cannot be used: {error}") from None
    if fd is None:
        return None
    try:
        return _attach(fd), os.fstat(fd).st_ino
    finally:
        os.close(fd)


def inode_of(path: str) -> int:
    """The inode of the file behind a name in shared memory; 0 where there is none.

    Raises SegmentError where it cannot be looked at: it may be there.
    """
    try:
        return os.stat(FOLDER + path).st_ino
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise SegmentError(f"shared memory {FOLDER}{path} cannot be looked at: {error.strerror}") from None


def sweep_leftovers() -> list[str]:
    """Unlink what killed processes of this user left that cannot have a successor; returns the names.

    A dead service that somebody named stays: its requests and its version of weights wait for the next.
    """
    swept = []
    for path, fd in _dead(named=False):
        with suppress(SegmentError):  # the folder may be written to no more
            _unlink(fd, path)
            swept.append(path[1:])
    return swept


def _dead(*, named: bool) -> Iterator[tuple[str, int]]:
    """Files of this user under our prefix that nobody holds, each open and locked until the next is asked for."""
    try:
        entries = sorted(os.listdir(FOLDER))
    except OSError:
        return  # no folder, no leftovers
    for entry in entries:
        path = "/" + entry
        if not path.startswith(PREFIX) or bool(UNNAMED.fullmatch(path)) == named:
            continue
        try:
            fd = _open(path)
        except SegmentError:
            continue
        if fd is not None:
            try:
                if _lock(fd):
                    yield path, fd
            finally:
                os.close(fd)


def _create(path: str) -> int | None:
    """A new file of that name that this user alone may open; None where there is one already."""
    try:
        fd: int = posix_ipc.SharedMemory(path, posix_ipc.O_CREX, mode=0o600).fd
    except posix_ipc.ExistentialError:
        _check_folder()
        return None
    except (OSError, ValueError, posix_ipc.Error) as error:
        raise SegmentError(
            f"shared memory {FOLDER}{path} cannot be created: {error}; services need a {FOLDER} that you may write to"
        ) from None
    os.fchmod(fd, 0o600)  # whatever the umask has left of it
    return fd


def _open(path: str) -> int | None:
    """The file of that name; None where there is none. Raises NotOurs before it touches another user's."""
    try:
        _check_ours(os.lstat(FOLDER + path), path)
        fd: int = posix_ipc.SharedMemory(path).fd
    except (FileNotFoundError, posix_ipc.ExistentialError):
        _check_folder()
        return None
    except (OSError, ValueError, posix_ipc.Error) as error:
        raise SegmentError(f"shared memory {FOLDER}{path} cannot be opened: {error}") from None
    try:
        _check_ours(os.fstat(fd), path)  # it may be another one by now
    except NotOurs:
        os.close(fd)
        raise
    return fd


def _check_folder() -> None:
    if not os.path.isdir(FOLDER):
        raise SegmentError(
            f"there is no {FOLDER}, where services have their memory: have one mounted "
            f"(mount -t tmpfs tmpfs {FOLDER}), or use a BatchedEvaluator, which needs none"
        )


def _check_ours(status: os.stat_result, path: str) -> None:
    """Raise NotOurs for what another user made or may open: that user could read the rows and forge the answers."""
    if status.st_uid != os.geteuid():
        try:
            owner = f"{pwd.getpwuid(status.st_uid).pw_name} (uid {status.st_uid})"
        except KeyError:
            owner = f"uid {status.st_uid}"
        raise NotOurs(f"{FOLDER}{path} belongs to another user, {owner}; use another service name")
    if not stat.S_ISREG(status.st_mode):
        raise NotOurs(f"{FOLDER}{path} is not a regular file; remove it, or use another service name")
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise NotOurs(
            f"{FOLDER}{path} may be opened by other users (its mode is {mode:04o}); "
            "remove it, or use another service name"
        )


def _unlink(fd: int, path: str) -> None:
    """Remove the name of our open file, if it is still this file's.

    Raises SegmentError where the name cannot be looked at or may not be removed.
    """
    if inode_of(path) != os.fstat(fd).st_ino:
        return
    try:
        posix_ipc.unlink_shared_memory(path)
    except posix_ipc.ExistentialError:
        pass  # swept
    except (OSError, posix_ipc.Error) as error:
        raise SegmentError(f"shared memory {FOLDER}{path} cannot be removed: {error}") from None


def _lock(fd: int) -> bool:
    """Whether the file is now ours. The lock goes with the descriptor."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _allocate(
    fd: int, servers: int, workers: int, slots: int, rows: int,
    state_dim: int, action_dim: int, value_dim: int, wire: str,
) -> _core.Segment:  # fmt: skip
    try:
        size = _core.segment_bytes(servers, workers, slots, rows, state_dim, action_dim, value_dim, wire)
        free = _free_memory()
        if free is not None and size > free:  # the kernel would kill instead of refusing
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        os.posix_fallocate(fd, 0, size)
        segment = _core.Segment.create(
            fd, servers, workers, slots, rows, state_dim, action_dim, value_dim, wire, secrets.randbits(63)
        )
    except OSError as error:
        raise SegmentError(_no_room(fd, size, error)) from None
    except ValueError as error:
        raise ConfigError(f"segment cannot be made: {error}") from None
    os.set_inheritable(fd, False)
    return segment


def _attach(fd: int) -> _core.Segment:
    """Raises SegmentCorrupt where it is no segment, SegmentError where there is no room to map it."""
    try:
        return _core.Segment.attach(fd)
    except OSError as error:
        raise SegmentError(f"a segment cannot be mapped: {error.strerror}") from None


def _same(
    fd: int, servers: int, workers: int, slots: int, rows: int,
    state_dim: int, action_dim: int, value_dim: int, wire: str,
) -> _core.Segment | None:  # fmt: skip
    """A dead predecessor's segment, or None where it has other sizes or cannot be used."""
    try:
        segment = _attach(fd)
    except SegmentCorrupt:
        return None
    found = (
        segment.num_servers, segment.num_workers, segment.slots_per_worker, segment.rows_per_slot,
        segment.state_dim, segment.action_dim, segment.value_dim, segment.wire,
    )  # fmt: skip
    wanted = (servers, workers, slots, rows, state_dim, action_dim, value_dim, wire)
    return segment if found == wanted and not segment.service_closed else None


def _next_version(fd: int) -> int:
    """The version of weights after the last that a dead server answered with; 0 where that is not to be known."""
    try:
        return int(_attach(fd).server_counters(0)["version"] + 1) % 2**32
    except SegmentCorrupt:
        return 0


def _holder(fd: int) -> str:
    """A text that says who holds the lock on a service's file, and what to do about it."""
    try:
        owner = _attach(fd).service_owner
    except SegmentError:
        owner = 0
    if owner == 0 or _core.life_of(owner) == "dead":  # it has the lock, and not written yet who it is
        return "another process; choose another name, or end that one"
    pid = _core.identity_pid(owner)
    if pid == os.getpid():
        return f"process {pid}, which is this one; close() that server first, or choose another name"
    return f"process {pid}; choose another name, or end that one"


def _no_room(fd: int, size: int, error: OSError) -> str:
    """A text that says what there was too little of, and what can be done."""
    wanted, less = f"{size / 1e6:.1f} MB", "use fewer slots, rows or lanes, or a smaller max_batch"
    if error.errno == errno.EFBIG:
        return f"a segment of {wanted} is larger than files may be here: raise `ulimit -f`, or {less}"
    in_folder = os.path.isdir(FOLDER) and os.fstat(fd).st_dev == os.stat(FOLDER).st_dev
    if error.errno != errno.ENOSPC or not in_folder:
        free = _free_memory()
        if error.errno == errno.ENOMEM and free is not None and free > size:
            return (
                f"a segment of {wanted} cannot be mapped ({error.strerror}), and memory is free: "
                f"allow this process more (ulimit -v), or {less}"
            )
        known = "" if free is None else f"; {free / 1e6:.1f} MB are free"
        return f"memory has no room for {wanted} ({error.strerror}){known}: {less}"
    left = [(FOLDER + path, os.fstat(other).st_size) for path, other in _dead(named=True)]
    dead = f"; dead services left {sum(n for _, n in left) / 1e6:.1f} MB: rm {' '.join(p for p, _ in left)}"
    stats = os.statvfs(FOLDER)
    return (
        f"{FOLDER} has no room for {wanted} ({error.strerror}); {stats.f_bavail * stats.f_frsize / 1e6:.1f} MB are "
        f"free{dead if left else ''}: {less}, or a larger {FOLDER}"
    )


def _free_memory() -> int | None:
    """Bytes of memory that this process may still take: the least of what the machine and its control groups
    have left, page cache counted as free. None where that is not to be known."""
    rooms = list(_group_rooms())
    with suppress(OSError):
        available = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if available:
            rooms.append(int(available[1]) * 1024)
    return max(min(rooms), 0) if rooms else None


def _group_rooms() -> Iterator[int]:
    """What is left of the limits of the control groups that this process is in: both versions, cgroups(7)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, usage = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, usage = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = Path(root + path)
        for folder in (group, *group.parents):  # a container may see the last of them only
            with suppress(OSError, ValueError):  # not there, or no limit ("max")
                most, used = (int((folder / file).read_text()) for file in (limit, usage))
                counts = dict(each.split() for each in (folder / "memory.stat").read_text().splitlines())
                cache = sum(int(counts.get(f"total_{kind}", counts.get(kind, 0))) for kind in CACHE)
                yield most - used + cache
